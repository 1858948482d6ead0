"""The frames of an episode that are still needed: the present one, and the one of m control steps ago.

Legend: `B` robots, `h`/`w` a camera's own pixels, `m` the foresight offset in control steps.
"""

from collections import deque
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vla_mot.errors import ConfigError

HISTORY_FRAMES = ("past", "present")


class FrameMemory:
    """Counts control steps from 0, and keeps what m of them need.

    offset: m, also readable. step: of the newest frames; -1 before any.
    """

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self._frames: dict[str, deque[tuple[int, Tensor]]] = {}
        self.step = -1

    def add(self, images: Mapping[str, Tensor], steps: int = 1) -> None:
        """Take in the frames `(B, 3, h, w)` that were seen `steps` control steps after the last ones.

        Raises ConfigError when a camera fell silent: an old picture must not stand in for a missing one.
        """
        silent = self._frames.keys() - images.keys()
        if silent:
            raise ConfigError(
                f"cameras {', '.join(sorted(silent))} gave pictures before, but not now; "
                f"got {', '.join(sorted(images)) or 'none'}."
            )
        self.step = self.step + steps if self._frames else 0
        for key, image in images.items():
            kept = self._frames.setdefault(key, deque())
            kept.append((self.step, image.clone()))  # a camera may fill the same memory again
            while len(kept) > 1 and kept[1][0] <= self.step - self.offset:
                kept.popleft()

    def pairs(self, history: str) -> dict[str, Tensor]:
        """Camera → history and present `(B, 2, 3, h, w)`.

        history: `past` takes the frame that is nearest to m steps ago, the first one until m steps have passed;
            `present` takes the present frame twice.
        """
        return {
            key: torch.stack((self._past(kept)[1] if history == "past" else kept[-1][1], kept[-1][1]), dim=1)
            for key, kept in self._frames.items()
        }

    def frame(self, history: str) -> tuple[int, dict[str, Tensor]]:
        """The control step and the pictures `(B, 3, h, w)` of one half of `pairs`."""
        found = {
            key: self._past(kept) if history == "past" else kept[-1] for key, kept in self._frames.items()
        }
        return next(iter(found.values()))[0], {key: image for key, (_, image) in found.items()}

    @property
    def oldest(self) -> int:
        """The step of the oldest frames that are kept."""
        return min((kept[0][0] for kept in self._frames.values()), default=0)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with only these robots, in this order."""
        index = torch.as_tensor(list(rows), dtype=torch.int64)
        for key, kept in self._frames.items():
            self._frames[key] = deque((step, image[index.to(image.device)]) for step, image in kept)

    def _past(self, kept: deque[tuple[int, Tensor]]) -> tuple[int, Tensor]:
        """Frames need not come at every step: two of them may lie around the wanted one. The older one wins a tie."""
        wanted = self.step - self.offset
        return min(list(kept)[:2], key=lambda pair: abs(pair[0] - wanted))

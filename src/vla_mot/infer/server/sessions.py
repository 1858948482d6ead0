"""What the server keeps of one connection: its seed, how many chunks it got, and the frames it may need again.

A session knows nothing of others, so what it is answered depends on its own requests alone. (Floating point may round
differently in batches of another size; max_batch=1 rules that out.)

Legend: `h`/`w` a camera's own pixels, `m` the policy's history offset in control steps, 0 where it reads no history.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vla_mot.infer.latents import FrameLatents
from vla_mot.infer.server.config import ServerConfig
from vla_mot.infer.server.errors import invalid
from vla_mot.infer.server.observation import Controls, Seen

Frame = Mapping[str, np.ndarray]
Source = Literal["request", "received", "near", "first", "present"]
"""Where the history frame came from: the request itself, or among the frames of this session the one of m steps ago,
one within the tolerance, the first of an episode that is younger than m; or the present frame stands in for it."""


@dataclass(frozen=True)
class History:
    """The history frame of one request. age: control steps before the present frame; None where nobody knows.

    step: at which the session got it; None where it did not.
    """

    frame: Frame
    source: Source
    age: int | None
    step: int | None = None


class ClientSession:
    """One connection. offset: m of the robot. latents: of the frames that are kept; None: they are not remembered."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self.robot: str | None = None
        self.previous_ms: float | None = None
        self.begin(config.seed)

    def begin(self, seed: int) -> None:
        """A new episode: nothing of the last one remains."""
        self.robot = None
        self.seed, self.calls = seed, 0
        self.key = object()  # like no other episode's
        self._chunk: tuple[int, np.ndarray] | None = None  # the step it begins at, `(L, D)`
        self._frames: dict[int, Frame] = {}  # by step, in order
        self._first: int | None = None
        self.latents = FrameLatents() if self._config.remember_latents else None

    def require(self, asked: Controls, robot: str, seen: Seen) -> None:
        """Change nothing; raise RequestError for what does not fit this episode.

        That is another seed, another robot, a step back, or pictures of another size. A reset begins another episode,
        which anything fits.
        """
        if asked.reset:
            return
        if asked.seed not in (None, self.seed) and self.calls:
            raise invalid("the seed changes only with a new episode: send reset = true with it.")
        if self.robot not in (None, robot):
            raise invalid(f"this episode drives {self.robot!r}; send reset = true before another robot.")
        last = next(reversed(self._frames), None)
        if asked.step is None or last is None:
            return
        if asked.step < last:
            raise invalid(
                f"step {asked.step} came after step {last}: send reset = true when an episode begins."
            )
        _require_same_sizes(self._frames[last], seen.images)

    def control(self, asked: Controls, robot: str | None) -> None:
        """Take a reset and a seed that fit; robot: the one that is driven from now on, None where it is left open."""
        if asked.reset:
            self.begin(self._config.seed if asked.seed is None else asked.seed)
        elif asked.seed is not None:
            self.seed = asked.seed
        self.robot = robot

    def remember(self, seen: Seen, step: int, offset: int) -> None:
        """Keep the frames of a control step, which fit."""
        self._first = step if self._first is None else self._first
        if self.latents is not None and not _same(self._frames.get(step, seen.images), seen.images):
            self.latents = FrameLatents()  # other pictures of a step that may have been encoded
        self._frames[step] = _alone(seen)
        for old in [old for old in self._frames if old < step - offset - self._config.history_tolerance]:
            del self._frames[old]
        while len(self._frames) > 1 and self._bytes() > self._config.history_bytes:
            del self._frames[next(iter(self._frames))]
        if self.latents is not None:
            self.latents.forget(next(iter(self._frames)))

    def history(self, seen: Seen, step: int | None, offset: int) -> History:
        """Find the frame of `offset` steps before. Raises RequestError where there is none and the server insists.

        A policy that reads no history (0) gets the present frame in its place, whatever came.
        """
        if offset == 0:
            return History(seen.images, "present", 0)
        if seen.history:
            return History(seen.history, "request", None)
        if step is not None and (found := self._find(step, offset)) is not None:
            return found
        if self._config.missing_history == "error":
            raise invalid(
                f"the frame of {offset} steps ago is not here: count control steps as 'step' and send that frame "
                "(remember = true), or send both frames of each camera as (2, h, w, 3)."
            )
        return History(seen.images, "present", 0, step)

    def answered(self, step: int | None, actions: np.ndarray) -> None:
        """The client got a chunk `(L, D)` for what it saw at a step."""
        self.calls += 1
        self._chunk = None if step is None else (step, actions)

    def left_over(self, step: int | None) -> np.ndarray | None:
        """What the last chunk still has for a step and later, `(R, D)`; None where nothing is left."""
        if self._chunk is None or step is None:
            return None
        start, actions = self._chunk
        rest = actions[max(0, step - start) :]
        return rest if len(rest) else None

    def _find(self, step: int, offset: int) -> History | None:
        wanted = step - offset
        if wanted in self._frames:
            return History(self._frames[wanted], "received", offset, wanted)
        first = self._first
        if first is not None and wanted < first and first in self._frames:
            return History(self._frames[first], "first", step - first, first)
        nearest = min(self._frames, key=lambda kept: abs(kept - wanted), default=None)
        if nearest is None or abs(nearest - wanted) > self._config.history_tolerance:
            return None
        return History(self._frames[nearest], "near", step - nearest, nearest)

    def _bytes(self) -> int:
        return sum(picture.nbytes for frame in self._frames.values() for picture in frame.values())


def _alone(seen: Seen) -> Frame:
    """The present frames; copies where they came with their history, which a view would keep in memory too."""
    return {key: picture.copy() for key, picture in seen.images.items()} if seen.history else seen.images


def _same(before: Frame, now: Frame) -> bool:
    return all(np.array_equal(before[key], picture) for key, picture in now.items())


def _require_same_sizes(before: Frame, now: Frame) -> None:
    for key, picture in now.items():
        if picture.shape != before[key].shape:
            raise invalid(
                f"{key}: {picture.shape[:2]} pixels now, {before[key].shape[:2]} before; a camera keeps its size "
                "in an episode."
            )

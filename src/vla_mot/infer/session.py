"""An episode: the frames that have been seen and the actions that are still to be executed.

Legend: `B` robots that run in step, `h`/`w` a camera's own pixels, `S` state dims, `D` action dims.
"""

from collections import deque
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vla_mot.batch import ActionChunk
from vla_mot.errors import ConfigError
from vla_mot.infer.policy import Policy

HISTORY_FRAMES = ("past", "present")


class Session:
    """Feeds a policy one observation per control step and hands out one action per step.

    Frames arrive at the embodiment's rate; the frame of m steps ago is the history (the first frame stands in
    until m frames were seen). A new chunk is predicted when `n_action_steps` actions were handed out.

    seeds: one per robot; they key the sampling noise, so an episode is repeatable whatever runs beside it.
    history: `present` feeds the present frame twice instead of the past one, to measure what history is worth.
    """

    def __init__(self, policy: Policy, seeds: Sequence[int], *, history: str = "past") -> None:
        if history not in HISTORY_FRAMES:
            raise ConfigError(f"history must be one of {', '.join(HISTORY_FRAMES)}, got {history!r}.")
        self.policy = policy
        self.history = history
        self._seeds = list(seeds)
        self._offset = policy.spec.model.offset(policy.robot.embodiment)
        self._frames: dict[str, deque[Tensor]] = {}
        self._queue: deque[Tensor] = deque()
        self._calls = 0
        self.foresight: Tensor | None = None

    def act(self, images: Mapping[str, Tensor], state: Tensor, instruction: str | Sequence[str]) -> Tensor:
        """Return the next action `(B, D)` (or `(D,)` when unbatched tensors were given).

        images: image feature → `(B, 3, h, w)` uint8 or float in [0, 1]; also `(3, h, w)` for one robot.
        state: `(B, S)` or `(S,)` in physical units. instruction: one string, or B.
        """
        single = state.dim() == 1
        if single:
            state, images = state[None], {key: image[None] for key, image in images.items()}
        instructions = [instruction] * len(state) if isinstance(instruction, str) else list(instruction)
        if len(self._seeds) != len(state):
            raise ConfigError(
                f"{len(self._seeds)} seed(s) were given for {len(state)} robots; each needs one."
            )
        self.remember(images)
        if not self._queue:
            chunk = self.predict(state, instructions)
            self._queue.extend(chunk.actions[:, : self.policy.spec.sampler.n_action_steps].unbind(1))
        action = self._queue.popleft()
        return action[0] if single else action

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with only these robots, in this order; what they have seen and still have to do stays theirs."""
        index = torch.as_tensor(list(rows), dtype=torch.int64)
        self._seeds = [self._seeds[row] for row in rows]
        for kept in self._frames.values():
            sliced = [image[index.to(image.device)] for image in kept]
            kept.clear()
            kept.extend(sliced)
        self._queue = deque(action[index.to(action.device)] for action in self._queue)
        if self.foresight is not None:
            self.foresight = self.foresight[index.to(self.foresight.device)]

    def remember(self, images: Mapping[str, Tensor]) -> None:
        """Take in the frames `(B, 3, h, w)` of one control step; `act` does it by itself.

        Raises ConfigError when a camera fell silent: an old picture must not stand in for a missing one.
        """
        silent = self._frames.keys() - images.keys()
        if silent:
            raise ConfigError(
                f"cameras {', '.join(sorted(silent))} gave pictures before, but not now; "
                f"got {', '.join(sorted(images)) or 'none'}."
            )
        for key, image in images.items():
            kept = self._frames.setdefault(key, deque(maxlen=self._offset + 1))
            kept.append(image)

    def predict(self, state: Tensor, instructions: Sequence[str], noise: Tensor | None = None) -> ActionChunk:
        """Predict a whole chunk from the frames remembered last; the queue of `act` stays as it is.

        state: `(B, S)` in physical units. noise: `(B, L, A)`, by default keyed by the seeds and the number of calls.
        """
        pairs = {
            key: torch.stack((kept[0] if self.history == "past" else kept[-1], kept[-1]), dim=1)
            for key, kept in self._frames.items()
        }
        if noise is None:
            noise = self.policy.noise(self._seeds, self._calls)
        chunk = self.policy.predict(pairs, state, instructions, noise)
        self.foresight = chunk.foresight
        self._calls += 1
        return chunk

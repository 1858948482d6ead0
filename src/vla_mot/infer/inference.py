"""A question to a policy, its answer, and how long the answer takes: no time, simulated time, or real time.

Legend: `B` robots, `L` chunk steps, `A` padded action dims, `S` real state dims, `h`/`w` a camera's own pixels.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vla_mot.batch import ActionChunk
from vla_mot.errors import ConfigError
from vla_mot.infer.chunks import Bend
from vla_mot.infer.policy import Policy
from vla_mot.options import at_least

_OVERSHOOT = 0.5  # by which a picture that was interpolated may leave [0, 1]


class LateInferenceError(RuntimeError):
    """No chunk came in time, for longer than was allowed."""


class InferenceError(RuntimeError):
    """A prediction beside the control loop failed; its cause is attached."""


@dataclass(frozen=True)
class Question:
    """Everything that a prediction needs, so that it can be made elsewhere while the robot goes on.

    images: camera → history and present `(B, 2, 3, h, w)`. state: `(B, S)` in physical units. noise: `(B, L, A)`.
    bend: what guides the flow that starts from the noise. session: whose question it is. latents: of
    the images, where they are remembered. See `Policy.predict`.
    """

    images: Mapping[str, Tensor]
    state: Tensor
    instructions: Sequence[str]
    noise: Tensor
    bend: Bend | None = None
    session: Hashable | None = None
    latents: Callable[[Policy], Tensor] | None = None

    def put(self, policy: Policy) -> ActionChunk:
        """Ask, and wait for the chunk.

        Raises ConfigError where an action would not be finite, or a picture is not in the range of its dtype.
        """
        noise = self.noise.to(policy.device, non_blocking=True)
        guide = None if self.bend is None else self.bend(noise)
        latents = None if self.latents is None else self.latents(policy)
        told = (self.images, self.state, self.instructions, noise)
        chunk = policy.predict(*told, guide, session=self.session, latents=latents)
        self._require_sense(chunk)
        return chunk

    def _require_sense(self, chunk: ActionChunk) -> None:
        """What is asked and answered is looked at afterwards, so that the device is waited for once."""
        if not bool(torch.isfinite(chunk.actions).all()):
            if not bool(torch.isfinite(self.state).all()):
                raise ConfigError(f"the state must be finite, got {self.state.tolist()}.")
            raise ConfigError(
                "the policy's actions are not finite, though the state is: its weights, its statistics or a picture "
                "are not; `vla-mot verify checkpoint=…` looks at the former."
            )
        for camera, picture in self.images.items():
            if picture.is_floating_point():
                low, high = (float(end) for end in picture.aminmax())
                if low < -_OVERSHOOT or high > 1 + _OVERSHOOT:
                    raise ConfigError(
                        f"{camera}: pictures are uint8, or float in [0, 1]; got {picture.dtype} in "
                        f"[{low:g}, {high:g}]: divide by 255, or hand in the bytes."
                    )

    def look(self, policy: Policy) -> None:
        """Understand what was seen for the session's later questions, see `Policy.look`."""
        policy.look(self.images, self.state, self.instructions, self.session)


@dataclass(frozen=True)
class Answer:
    """A chunk. asked: at which control step. seconds: how long its prediction took."""

    chunk: ActionChunk
    asked: int
    seconds: float


class Inference(Protocol):
    """Answers one question at a time."""

    @property
    def busy(self) -> bool:
        """Whether a question is under way; then none may be asked."""

    @property
    def expected_delay(self) -> int:
        """Control steps that the next answer will take."""

    def ask(self, question: Question, step: int) -> None:
        """Hand in a question at a control step; returns at once, or when a simulated one is computed."""

    def answer(self, step: int) -> Answer | None:
        """The answer to the question under way, as soon as it is there."""

    def prepare(self, work: Callable[[Policy], object]) -> None:
        """Do what a later question will need, where predictions are made, after the one under way."""


class SimulatedInference:
    """Answers `delay` control steps after the question: the arithmetic of latency without its time.

    With delay 0 the loop waits for its chunk within the step, as a plain session does.
    """

    def __init__(self, policy: Policy, delay: int = 0) -> None:
        at_least(0, {"delay": delay})
        self._policy, self._delay = policy, delay
        self._answer: Answer | None = None

    @property
    def busy(self) -> bool:
        """See `Inference`."""
        return self._answer is not None

    @property
    def expected_delay(self) -> int:
        """See `Inference`."""
        return self._delay

    def ask(self, question: Question, step: int) -> None:
        """See `Inference`."""
        assert self._answer is None, "one question at a time"
        self._answer = Answer(question.put(self._policy), step, 0.0)

    def prepare(self, work: Callable[[Policy], object]) -> None:
        """See `Inference`."""
        work(self._policy)

    def answer(self, step: int) -> Answer | None:
        """See `Inference`."""
        if self._answer is None or step < self._answer.asked + self._delay:
            return None
        found, self._answer = self._answer, None
        return found

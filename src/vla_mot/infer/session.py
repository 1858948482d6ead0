"""An episode: the frames that have been seen and the actions that are still to be executed.

Legend: `B` robots that run in step, `h`/`w` a camera's own pixels, `S` state dims, `D` action dims, `L` chunk steps,
`A` padded action dims.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from vla_mot.batch import ActionChunk
from vla_mot.errors import ConfigError
from vla_mot.infer.chunking import NAIVE, Chunking
from vla_mot.infer.chunks import Bend, TimedChunk
from vla_mot.infer.holding import Holding
from vla_mot.infer.inference import Answer, Inference, Question, SimulatedInference
from vla_mot.infer.latents import FrameLatents
from vla_mot.infer.memory import HISTORY_FRAMES, FrameMemory
from vla_mot.infer.policy import Policy
from vla_mot.infer.timing import Timing

__all__ = ["HISTORY_FRAMES", "Session"]


class Session:
    """Feeds a policy one observation per control step and hands out one action per step.

    Frames arrive at the embodiment's rate; the frame of m steps ago is the history (the first frame stands in
    until m frames were seen). By default a new chunk is predicted, within the step, when `n_action_steps` actions were
    handed out.

    seeds: one per robot; they key the sampling noise, so an episode is repeatable whatever runs beside it.
    history: `present` feeds the present frame twice instead of the past one, to measure what history is worth.
    chunks: what is done with chunks in time.
    inference: where predictions are made, and how long they take; by default here, in no control step.
    remember_latents: every frame is encoded once. The one that will be history is encoded when it arrives, so that a
        prediction encodes the present alone. Actions are equal but for rounding.
    holding: what the robot does while there is no action, which only happens when inference takes time.
    """

    def __init__(
        self,
        policy: Policy,
        seeds: Sequence[int],
        *,
        history: str = "past",
        chunks: Chunking = NAIVE,
        inference: Inference | None = None,
        holding: Holding | None = None,
        remember_latents: bool = False,
    ) -> None:
        if remember_latents and policy.spec.model.generation is None:
            raise ConfigError(
                "remember_latents=true keeps latents of frames, but the model has no generation expert, which alone "
                "would read them: leave it out."
            )
        if history not in HISTORY_FRAMES:
            raise ConfigError(f"history must be one of {', '.join(HISTORY_FRAMES)}, got {history!r}.")
        self.policy = policy
        self.history = history
        self.timing = Timing()
        self.foresight: Tensor | None = None
        self._seeds = list(seeds)
        self._frames = FrameMemory(policy.spec.model.offset(policy.robot.embodiment))
        self._chunks = chunks.start(policy.spec.sampler.n_action_steps)
        self._inference = SimulatedInference(policy) if inference is None else inference
        self._holding = Holding(policy.robot.embodiment) if holding is None else holding
        self._rows: Tensor | None = None  # of the robots that were kept since the question under way
        self._latents = FrameLatents() if remember_latents else None
        self._calls = 0
        self._key = object()  # like no other session's

    def act(self, images: Mapping[str, Tensor], state: Tensor, instruction: str | Sequence[str]) -> Tensor:
        """Return the next action `(B, D)` (or `(D,)` when unbatched tensors were given).

        images: image feature → `(B, 3, h, w)` uint8 or float in [0, 1]; also `(3, h, w)` for one robot.
        state: `(B, S)` or `(S,)` in physical units. instruction: one string, or B.
        Raises ConfigError for what does not fit, and where the actions would not be finite.
        """
        single = state.dim() == 1
        images, state, instructions = batched(images, state, instruction)
        if len(self._seeds) != len(state):
            raise ConfigError(
                f"{len(self._seeds)} seed(s) were given for {len(state)} robots; each needs one."
            )
        self.remember(images)
        self._exchange(state, instructions)
        self._prepare()
        action = self._chunks.action(self._frames.step)
        self.timing.stepped(has_action=action is not None)
        action = self._holding.next(action, state)
        return (action[0] if single else action).clone()  # the caller's own: chunks are read again

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with only these robots, in this order; what they have seen and still have to do stays theirs."""
        index = torch.as_tensor(list(rows), dtype=torch.int64)
        self._seeds = [self._seeds[row] for row in rows]
        self._frames.keep(rows)
        self._key = object()  # what was understood belongs to other rows
        if self._latents is not None:
            self._latents = self._latents.kept(index)
        self._chunks.keep(rows)
        self._holding.keep(rows)
        if self._inference.busy:
            self._rows = index if self._rows is None else self._rows[index]
        if self.foresight is not None:
            self.foresight = self.foresight[index.to(self.foresight.device)]

    def remember(self, images: Mapping[str, Tensor], steps: int = 1) -> None:
        """Take in the frames `(B, 3, h, w)` of one control step; `act` does it by itself.

        steps: control steps since the last frames. Raises ConfigError when a camera fell silent.
        """
        self._frames.add(images, steps)
        if self._latents is not None:
            self._latents.forget(self._frames.oldest)

    def remember_pair(self, past: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> None:
        """Take in the frames of m control steps ago and the present ones, of a caller who remembers; forget others."""
        self._frames = FrameMemory(self._frames.offset)
        self._frames.add(past)
        self._frames.add(present, self._frames.offset)
        if self._latents is not None:
            self._latents = FrameLatents()

    def predict(
        self,
        state: Tensor,
        instructions: Sequence[str],
        noise: Tensor | None = None,
        bend: Bend | None = None,
    ) -> ActionChunk:
        """Predict a whole chunk from the frames remembered last; the actions of `act` stay as they are.

        state: `(B, S)` in physical units. noise: `(B, L, A)`, by default keyed by the seeds and the number of calls.
        bend: what guides the flow that starts from the noise.
        """
        chunk = self.question(state, instructions, noise, bend).put(self.policy)
        self.foresight = chunk.foresight
        return chunk

    def question(
        self,
        state: Tensor,
        instructions: Sequence[str],
        noise: Tensor | None = None,
        bend: Bend | None = None,
    ) -> Question:
        """What `predict` asks, to be put elsewhere."""
        if noise is None:
            noise = self.policy.noise(self._seeds, self._calls)
        self._calls += 1
        pairs, latents = self._frames.pairs(self.history), None
        if self._latents is not None:
            past, present = self._frames.frame(self.history), self._frames.frame("present")
            latents = partial(self._latents.pair, past=past, present=present)
        return Question(pairs, state.clone(), list(instructions), noise, bend, self._key, latents)

    def _prepare(self) -> None:
        """Encode the present frame where it will be history of a later question."""
        step, delay = self._frames.step, self._inference.expected_delay
        if self._latents is not None and self._chunks.asks_at(step + self._frames.offset, delay):
            present = self._frames.frame("present")
            self._inference.prepare(partial(self._latents.of, step=step, images=present[1]))

    def _exchange(self, state: Tensor, instructions: Sequence[str]) -> None:
        """Take the chunk that has arrived, if any, and ask for the next one if it is due."""
        step, inference = self._frames.step, self._inference
        self._receive(inference.answer(step))
        delay = inference.expected_delay
        if inference.busy or not self._chunks.due(step, delay):
            return
        bend = self._chunks.continuation(step, delay, state, self.policy.processor)
        question = self.question(state, instructions, bend=bend)
        inference.ask(question, step)
        if self.policy.looks_ahead:
            inference.prepare(question.look)
        self.timing.asked += 1
        self._receive(inference.answer(step))

    def _receive(self, answer: Answer | None) -> None:
        if answer is None:
            return
        chunk = answer.chunk if self._rows is None else answer.chunk[self._rows]
        self._rows = None
        self.foresight = chunk.foresight
        timed = TimedChunk(answer.asked, chunk.actions)
        self.timing.oldest_understanding = max(self.timing.oldest_understanding, chunk.understanding_age)
        self.timing.arrived(self._frames.step - answer.asked, answer.seconds)
        if timed.end <= self._frames.step:
            self.timing.stale += 1
            return
        self.timing.used += 1
        self._chunks.add(timed)


def batched(
    images: Mapping[str, Tensor], state: Tensor, instruction: str | Sequence[str]
) -> tuple[Mapping[str, Tensor], Tensor, list[str]]:
    """What was seen of one robot as of a batch of one; one string as the instruction of all."""
    if state.dim() == 1:
        state, images = state[None], {key: image[None] for key, image in images.items()}
    return images, state, [instruction] * len(state) if isinstance(instruction, str) else list(instruction)

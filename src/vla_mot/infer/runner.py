"""A control loop that never waits for inference: observations in, one action out, at a fixed rate.

    with Runner(policy, chunks=Chunking("rtc"), max_late=20) as runner:
        runner.warm_up(images, state, instruction)          # compiles, allocates; nothing moves yet
        while running:
            robot.command(runner.step(images, state, instruction))  # returns at once
            rate.sleep()
        print(runner.report())

A chunk is predicted in a thread beside the loop, from what was seen when it was asked for. When it arrives, `d` control
steps later, its first `d` actions are past and are dropped; the robot has executed the chunk before it meanwhile.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Self

from torch import Tensor

from vla_mot.infer.background import BackgroundInference, Clock
from vla_mot.infer.chunking import NAIVE, Chunking
from vla_mot.infer.chunks import TimedChunk
from vla_mot.infer.holding import Hold, Holding
from vla_mot.infer.policy import Policy
from vla_mot.infer.session import Session, batched
from vla_mot.infer.timing import TimingReport

log = logging.getLogger(__name__)

_LATE = 1.5  # control periods between two steps, from which on the loop itself is late
_EARLY = 0.5  # and below which it is early
_HASTY = 10  # early steps in a row; a stumble is made good in fewer


class Runner:
    """Drives one robot, or B in step, while a worker thread predicts.

    seeds, history, chunks, remember_latents: see `Session`. Every step must come with fresh observations, at the
        embodiment's rate.
    max_late: this many steps in a row may be without an action, the first ones included; then `step` raises
        LateInferenceError. By default a chunk's length. Meanwhile the last action is commanded again.
    hold: what is commanded before the first action, see `Holding`.
    clock, first_delay: see `BackgroundInference`.

    Raises ConfigError where nobody knows how the robot holds still.
    """

    def __init__(
        self,
        policy: Policy,
        seeds: Sequence[int] = (0,),
        *,
        history: str = "past",
        chunks: Chunking = NAIVE,
        max_late: int | None = None,
        hold: Hold | None = None,
        clock: Clock = time.perf_counter,
        first_delay: int = 1,
        remember_latents: bool = False,
    ) -> None:
        self.policy, self.chunks = policy, chunks
        self._history, self._hold, self._clock = history, hold, clock
        self._remember_latents = remember_latents
        self._max_late = policy.spec.model.chunk_size if max_late is None else max_late
        self._fps = policy.robot.embodiment.fps
        self.inference = BackgroundInference(policy, clock=clock, first_delay=first_delay)
        self._seeds = list(seeds)
        self._last: float | None = None
        self._early = 0  # steps in a row
        self._closed = self._is_late = self._is_hasty = False
        self._session = self._begin()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def step(self, images: Mapping[str, Tensor], state: Tensor, instruction: str | Sequence[str]) -> Tensor:
        """The action to command now, as `Session.act` has it, on the CPU; returns without waiting for a prediction.

        Raises InferenceError, from its cause, when a prediction failed, and LateInferenceError, see `max_late`.
        """
        if self._closed:
            raise RuntimeError("the runner is closed; make a new one.")
        self._look_at_the_clock()
        action = self._session.act(images, state, instruction)
        self._say_late()
        return action.cpu()

    def warm_up(self, images: Mapping[str, Tensor], state: Tensor, instruction: str | Sequence[str]) -> None:
        """Predict as `step` will, and wait: what compiles or allocates does so before the robot moves."""
        trial = self._begin()
        images, state, told = batched(images, state, instruction)
        trial.remember(images)
        chunk = self.inference.run(trial.question(state, told))
        chunks = self.chunks.start(self.policy.spec.sampler.n_action_steps)
        chunks.add(TimedChunk(0, chunk.actions))
        bend = chunks.continuation(1, 1, state, self.policy.processor)
        if bend is not None:
            self.inference.run(trial.question(state, told, bend=bend))

    def reset(self, seeds: Sequence[int] | None = None) -> None:
        """Begin another episode, with other seeds if given. What was under way for the last one is dropped."""
        self.inference.forget()
        self._seeds = self._seeds if seeds is None else list(seeds)
        self._last, self._early = None, 0
        self._is_late = self._is_hasty = False
        self._session = self._begin()

    def report(self) -> TimingReport:
        """What this episode's loop went through."""
        return self._session.timing.report()

    def close(self) -> None:
        """Stop, when the prediction under way has ended. Twice is once."""
        self._closed = True
        self.inference.close()

    def _look_at_the_clock(self) -> None:
        """Count steps that begin late or early, and log, once in an episode, that the loop does not keep the rate."""
        last, self._last = self._last, self._clock()
        if last is None or self._fps is None:
            return
        periods = (self._last - last) * self._fps
        self._session.timing.slow_steps += periods > _LATE
        self._session.timing.fast_steps += periods < _EARLY
        self._early = self._early + 1 if periods < _EARLY else 0
        if self._early < _HASTY or self._is_hasty:
            return
        self._is_hasty = True
        log.warning(
            "the loop does not keep the control rate: %d steps in a row came less than half a period of 1/%g s apart, "
            "and actions are played too fast; let the loop wait out each period; report() goes on counting",
            self._early,
            self._fps,
        )

    def _say_late(self) -> None:
        """Log, once in an episode, that inference does not keep up."""
        timing = self._session.timing
        if self._is_late or not (timing.starved or timing.stale):
            return
        self._is_late = True
        log.warning(
            "inference does not keep up with the control rate: %d stale chunk(s), %d step(s) without an action so far; "
            "report() goes on counting",
            timing.stale,
            timing.starved,
        )

    def _begin(self) -> Session:
        holding = Holding(self.policy.robot.embodiment, self._hold, self._max_late)
        holding.require()
        return Session(
            self.policy,
            self._seeds,
            history=self._history,
            chunks=self.chunks,
            inference=self.inference,
            holding=holding,
            remember_latents=self._remember_latents,
        )

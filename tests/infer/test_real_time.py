"""The loop against a real clock: it keeps its rate while every prediction takes ten of its periods."""

import statistics
import time
from dataclasses import replace
from itertools import pairwise

from tests.infer.test_runner import TASK
from tests.infer.tiny_policy import frames, states, tiny_policy
from vla_mot.batch import ActionChunk
from vla_mot.hub.spec import PolicySpec, SamplerConfig
from vla_mot.infer.policy import Policy
from vla_mot.infer.runner import Runner
from vla_mot.robots.robot import Robot

HERTZ, SECONDS, INFERENCE = 50, 1.0, 0.2
PERIOD, STEPS = 1 / HERTZ, round(HERTZ * SECONDS)


class Sleepy(Policy):
    """A policy of a robot at 50 Hz, that sleeps within every prediction."""

    def __init__(self) -> None:
        base = tiny_policy(chunk_size=STEPS)
        robot = Robot(replace(base.robot.embodiment, fps=HERTZ), base.robot.statistics)
        super().__init__(base.model, PolicySpec(base.spec.model, (robot,), SamplerConfig(3, 4)))

    def predict(self, *asked, **options) -> ActionChunk:
        time.sleep(INFERENCE)
        return super().predict(*asked, **options)


def test_a_loop_at_50_hz_does_not_wait_for_predictions_of_200_ms():
    seen = [
        ({key: image[0] for key, image in frames(1, t).items()}, states(1, t)[0], TASK) for t in range(STEPS)
    ]
    entered, left = [], []
    with Runner(Sleepy()) as runner:
        runner.warm_up(*seen[0])
        began = time.perf_counter()
        for t, told in enumerate(seen):
            time.sleep(max(0.0, began + t * PERIOD - time.perf_counter()))
            entered.append(time.perf_counter())
            runner.step(*told)
            left.append(time.perf_counter())
        report = runner.report()
    took = [end - start for start, end in zip(entered, left, strict=True)]
    assert statistics.median(took) < PERIOD / 4
    assert sum(took) < report.asked * INFERENCE / 2, "no prediction was waited for"
    assert left[-1] - began < 1.5 * SECONDS
    slow = sum(later - earlier > 1.5 * PERIOD for earlier, later in pairwise(entered))
    assert report.steps == STEPS and abs(report.slow_steps - slow) <= 1
    assert report.used >= 2 and 0 <= report.asked - report.used <= 1
    assert (report.stale, report.starved) == (0, 0)
    assert report.latency_ms.p50 >= 1000 * INFERENCE
    assert report.waiting >= INFERENCE / PERIOD - 1 and report.delay_steps.p50 >= INFERENCE / PERIOD - 1

"""A small evaluation with known numbers."""

import numpy as np

from vla_mot.evaluate.foresight_report import (
    METHODS,
    REGIONS,
    ForesightExample,
    ForesightReport,
    ForesightScore,
)
from vla_mot.evaluate.intervals import Interval
from vla_mot.evaluate.results import Arm, EpisodeResult, Evaluation

ERRORS = dict(zip(METHODS, (0.25, 0.5, 1.125, 0.8125), strict=True))


def arm(name: str, successes: int, episodes: int, label: str = "") -> Arm:
    """Seeds 0, 1, …: the first of them succeed, the others run out of time."""
    results = [
        EpisodeResult(
            seed,
            "pick it",
            "pick it",
            "success" if seed < successes else "time_out",
            seed < successes,
            40,
            0.5,
        )
        for seed in range(episodes)
    ]
    return Arm(name, label or name, tuple(results))


def evaluation() -> Evaluation:
    arms = (arm("policy", 7, 10, "Trained <policy>"), arm("no_history", 2, 10, "Without history"))
    return Evaluation(arms, foresight(), {"command": "vla-mot evaluate policy=x"})


def foresight() -> ForesightReport:
    scores = tuple(
        ForesightScore(
            view,
            region,
            method,
            Interval(error, error * 0.9, error * 1.1),
            Interval(error / 0.25, 0.9 * error / 0.25, 1.1 * error / 0.25),
            Interval(20 - 10 * error, 10.0, 25.0) if region == "whole" else None,
        )
        for view in ("head", "gripper")
        for region in REGIONS
        for method, error in ERRORS.items()
    )
    random = np.random.default_rng(0)
    examples = tuple(
        ForesightExample(view, 3, *(random.integers(0, 256, (16, 16, 3)).astype(np.uint8) for _ in range(5)))
        for view in ("head", "gripper")
    )
    return ForesightReport(scores, 1234, 9, 6, 0.5, examples)

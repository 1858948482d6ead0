from dataclasses import replace

import pytest
import torch

from tests.evaluate.open_loop.moments import driving, recorded, two_units
from tests.infer.tiny_policy import HEAD
from vla_mot.evaluate.open_loop.recorded import silent_robot
from vla_mot.evaluate.open_loop.results import OpenLoopResult
from vla_mot.evaluate.open_loop.scorer import DatasetScorer, Subject
from vla_mot.infer.policy import Policy
from vla_mot.robots.embodiment import Embodiment


@pytest.fixture(scope="session")
def result() -> OpenLoopResult:
    """Two datasets of a robot with two units, one of them with < in its name, and one without actions. Nothing may
    change it."""
    policy = driving(two_units())
    eye = Embodiment("eye", 5.0, (), (), (HEAD, None, None))
    watching = Policy(policy.model, policy.spec, silent_robot(eye, policy.spec.model))
    found = []
    for number, (name, who) in enumerate((("a/one", policy), ("<two>", policy), ("film", watching))):
        body = who.robot.embodiment
        scorer = DatasetScorer(
            Subject(who, name, body.fps, 3, 2, (0, 1)), {0: torch.rand(20, body.action_dim)}
        )
        seen = recorded(state_dim=body.state_dim, action_dim=body.action_dim, seed=number)
        scorer.add(replace(seen, frame=2 * torch.arange(5)))
        found.append(scorer.result())
    return OpenLoopResult(tuple(found), {"checkpoint": "runs/<a>"})

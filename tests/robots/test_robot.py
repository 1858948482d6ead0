from dataclasses import replace

import pytest
import torch

from tests.infer.tiny_policy import conveyor_embodiment, statistics
from vla_mot.errors import ConfigError
from vla_mot.robots.catalog import find_embodiment, known_embodiments
from vla_mot.robots.normalization import Statistics
from vla_mot.robots.robot import Robot, choose_robot


def robot(mode: str, state_dims: int = 4) -> Robot:
    body = conveyor_embodiment()
    state, action = statistics([0.0] * state_dims, [1.0] * state_dims), statistics([0.0] * 3, [1.0] * 3)
    return Robot(body, Statistics(body.name, mode, 4, state, action))


def test_the_one_that_fits_is_chosen():
    delta, absolute = robot("delta"), robot("abs")
    assert choose_robot([delta]) is delta
    assert choose_robot([delta, absolute], action_mode="abs") is absolute
    assert choose_robot([delta, absolute], "conveyor", "delta") is delta


def test_case_and_blanks_of_a_name_or_alias_do_not_matter():
    plain = robot("delta")
    known = replace(plain, embodiment=replace(plain.embodiment, aliases=("Belt Robot",)))
    for asked in ("Conveyor", "belt robot", "BELT  ROBOT"):
        assert choose_robot([known], asked) is known


@pytest.mark.parametrize(
    ("robots", "asked", "message"),
    [
        ([], {}, "knows none: its checkpoint holds no statistics"),
        (["delta"], {"embodiment": "aloha"}, "no robot with embodiment 'aloha'.*knows conveyor/delta"),
        (["delta", "abs"], {}, "fits 2 robots of the policy: conveyor/delta, conveyor/abs"),
    ],
)
def test_a_choice_that_is_none_is_refused(robots, asked, message):
    with pytest.raises(ConfigError, match=message):
        choose_robot([robot(mode) for mode in robots], **asked)


def test_statistics_of_another_layout_are_refused():
    with pytest.raises(ConfigError, match="conveyor's state have 5 dimensions, the embodiment has 4"):
        robot("delta", state_dims=5)


def test_every_robot_of_the_design_is_known_by_its_names():
    names = {"piper", "arx_lift2", "split_aloha", "arx_ac_one", "genie1", "a2d", "franka", "aloha", "panda"}
    assert names <= {e.name for e in known_embodiments()}
    for alias, name in (
        ("ARX Lift-2", "arx_lift2"),
        ("AgileX Split Aloha", "split_aloha"),
        ("Genie-1", "genie1"),
    ):
        found = find_embodiment(alias)
        assert found is not None and found.name == name
    assert find_embodiment("nobody") is None
    spelled = [spelling for e in known_embodiments() for spelling in (e.name, *e.aliases)]
    assert len(spelled) == len(set(spelled)), "one spelling names two robots"


@pytest.mark.parametrize(
    ("name", "delta"),
    [
        ("piper", [6, -1, 6, -1]),
        ("genie1", [14, -2]),
        ("a2d", [14, -2]),
        ("franka", [7, -1]),
        ("aloha", [6, -1, 6, -1]),
        ("panda", [7]),
    ],
)
def test_deltas_are_those_of_the_released_checkpoints(name, delta):
    """A positive number counts delta dimensions, a negative one absolute ones, in order."""
    body = find_embodiment(name)
    assert body is not None
    assert list(body.delta_mask) == [run > 0 for run in delta for _ in range(abs(run))]
    assert torch.tensor(body.delta_mask).numel() == body.action_dim

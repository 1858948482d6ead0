import pytest

from vla_mot.robots.catalog import find_embodiment, known_embodiments
from vla_mot.robots.dimensions import action_dimensions
from vla_mot.robots.embodiment import Embodiment


def robot(*fields: dict, state: tuple[str, ...] = (), unit: str = "rad") -> Embodiment:
    spec = [{"key": "observation.state", "names": list(state), "units": [unit] * len(state)}]
    described = {"name": "r", "fps": None, "state": spec, "action": list(fields), "cameras": ["c"]}
    return Embodiment.from_dict(described)


def field(key: str, names: list[str], delta: list[bool]) -> dict:
    return {"key": key, "names": names, "units": ["rad"] * len(names), "delta": delta}


@pytest.mark.parametrize(
    ("name", "grippers"),
    [
        ("conveyor", {"aperture"}),
        ("conveyor_fingers", {"left", "right"}),  # no name says so: they stay absolute beside deltas
        ("conveyor_video", set()),
        ("aloha", {"left_gripper", "right_gripper"}),
        ("a2d", {"left_effector", "right_effector"}),
        ("franka", {"gripper"}),
        ("panda", {"gripper"}),  # though all are deltas
    ],
)
def test_joints_and_grippers(name, grippers):
    found = action_dimensions(find_embodiment(name))
    assert {dimension.name for dimension in found if dimension.gripper} == grippers


def test_absolute_joints_of_a_robot_with_a_named_gripper_stay_joints():
    found = action_dimensions(robot(field("action", ["lift", "gripper"], [False, False]), state=("lift",)))
    assert [dimension.gripper for dimension in found] == [False, True]
    found = action_dimensions(robot(field("action", ["a", "b"], [False, False]), state=("a",)))
    assert [dimension.gripper for dimension in found] == [False, False]


def test_the_state_that_stands_for_an_action():
    fields = (field("one", ["a", "b"], [True, False]), field("two", ["c", "d"], [False, False]))
    found = action_dimensions(robot(*fields, state=("other", "b", "d", "c")))
    assert [dimension.state for dimension in found] == [0, 1, None, None]
    assert [dimension.state for dimension in action_dimensions(robot(*fields, state=("x",)))] == [
        0, None, None, None,
    ]  # fmt: skip


def test_a_state_in_another_unit_stands_for_nothing():
    fields = (field("one", ["a", "b"], [True, False]),)
    metres = robot(*fields, state=("a", "b"), unit="m")
    assert [dimension.state for dimension in action_dimensions(metres)] == [None, None]


def test_a_delta_is_one_in_its_action_mode_only():
    body = robot(field("one", ["goal", "b"], [True, False]), state=("a", "b"))
    as_learned = {
        mode: [(d.delta, d.state) for d in action_dimensions(body, mode)] for mode in ("delta", "abs")
    }
    assert as_learned == {"delta": [(True, 0), (False, 1)], "abs": [(False, None), (False, 1)]}


@pytest.mark.parametrize("mode", ["delta", "abs"])
@pytest.mark.parametrize("name", ["widowx", "google_robot", "panda", "panda_omron", "metaworld"])
def test_commands_and_motions_of_one_step_have_no_state_that_stands_for_them(name, mode):
    assert {dimension.state for dimension in action_dimensions(find_embodiment(name), mode)} == {None}


def test_names_that_occur_twice_carry_their_feature():
    fields = (field("left", ["turn", "grip"], [True, False]), field("right", ["turn"], [False]))
    names = [dimension.name for dimension in action_dimensions(robot(*fields, state=("turn",)))]
    assert names == ["left.turn", "grip", "right.turn"]


@pytest.mark.parametrize("embodiment", known_embodiments(), ids=lambda embodiment: embodiment.name)
def test_every_known_robot_has_names_of_its_own(embodiment):
    found = action_dimensions(embodiment)
    assert len(found) == embodiment.action_dim
    assert len({dimension.name for dimension in found}) == len(found)
    assert tuple(dimension.delta for dimension in found) == embodiment.delta_mask

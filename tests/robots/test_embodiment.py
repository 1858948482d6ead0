import pytest

from vla_mot.errors import ConfigError
from vla_mot.robots.embodiment import Embodiment

SPEC = {
    "name": "two_arms",
    "fps": 30,
    "state": [
        {"key": "states.joint", "names": ["a", "b"], "units": ["rad", "rad"]},
        {"key": "states.gripper", "names": ["g"], "units": ["m"]},
    ],
    "action": [
        {"key": "actions.joint", "names": ["a", "b"], "units": ["rad", "rad"], "delta": [True, True]},
        {"key": "actions.gripper", "names": ["g"], "units": ["m"]},
    ],
    "cameras": ["head", None, "hand"],
    "aliases": ["Two Arms"],
}


def test_features_are_concatenated_in_order():
    embodiment = Embodiment.from_dict(SPEC)
    assert (embodiment.state_dim, embodiment.action_dim) == (3, 3)
    assert embodiment.delta_mask == (True, True, False)
    assert embodiment.present_cameras == ((0, "head"), (2, "hand"))


def test_the_yaml_form_round_trips():
    embodiment = Embodiment.from_dict(SPEC)
    assert Embodiment.from_dict(embodiment.to_dict()) == embodiment


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "TwoArms"}, "must be lower case: write 'twoarms'"),
        ({"fps": 0}, "fps must be positive, got 0"),
        ({"camera": []}, "unknown key 'embodiment.camera'. Did you mean 'embodiment.cameras'?"),
        ({"state": [{"key": "s", "names": ["a"], "units": []}]}, "lists 1 names, 0 units and 1 delta flags"),
        (
            {"state": [{"key": "s", "name": ["a"]}]},
            "unknown key 'embodiment.state[0].name'. Did you mean 'embodiment.state[0].names'?",
        ),
        ({"cameras": ["head", "hand", "head"]}, "'two_arms' lists image feature 'head' twice"),
        ({"state": [SPEC["state"][0]] * 2}, "'two_arms' lists state feature 'states.joint' twice"),
        ({"action": [SPEC["action"][1]] * 2}, "'two_arms' lists action feature 'actions.gripper' twice"),
        (
            {"state": [SPEC["state"][0] | {"delta": [False, True]}]},
            "state feature 'states.joint' has delta: true; only an action is relative",
        ),
        ({"state": []}, "action dimension 1 is a delta, but the state has only 0 dimensions"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ConfigError) as caught:
        Embodiment.from_dict(SPEC | change)
    assert message in str(caught.value)


def test_a_missing_field_is_named():
    with pytest.raises(
        ConfigError, match=r"embodiment.fps \(a number\), embodiment.action \(a list\) must be given"
    ):
        Embodiment.from_dict({key: value for key, value in SPEC.items() if key not in ("fps", "action")})


def test_durations_are_frames_or_whole_frames_of_seconds():
    embodiment = Embodiment.from_dict(SPEC)
    assert embodiment.frames(frames=15) == embodiment.frames(seconds=0.5) == 15
    with pytest.raises(ConfigError, match=r"0.51 s is 15.3 frames at 30 fps"):
        embodiment.frames(seconds=0.51)
    with pytest.raises(ConfigError, match="in frames or in seconds"):
        embodiment.frames()

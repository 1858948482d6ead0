import random

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.robots.layouts import LAYOUTS, info, so100, vector, video
from vla_mot.errors import ConfigError
from vla_mot.robots.catalog import find_embodiment, load_embodiment
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.features import camera_size, dimension_names
from vla_mot.robots.generic import embodiment_yaml, infer_embodiment, is_gripper, rank_cameras

CAMERA = {"observation.images.top": video()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_robots_of_the_design_are_inferred_as_they_are_described(name):
    """The same features in the same order, the same delta dimensions, the same cameras in the same slots."""
    described, inferred = find_embodiment(name), infer_embodiment(LAYOUTS[name])
    assert [(f.key, len(f.names)) for f in inferred.state] == [(f.key, len(f.names)) for f in described.state]
    assert [(f.key, len(f.names)) for f in inferred.action] == [
        (f.key, len(f.names)) for f in described.action
    ]
    assert inferred.cameras == tuple(key for key in described.cameras if key)
    if (
        name == "panda"
    ):  # the released checkpoints take a delta of the gripper too, which no name would suggest
        assert inferred.delta_mask == (True,) * 6 + (False,)
    else:
        assert inferred.delta_mask == described.delta_mask
    assert inferred.fps == 30
    assert inferred.name == f"generic_s{described.state_dim}_a{described.action_dim}"


def test_a_desk_arm():
    inferred = infer_embodiment(so100())
    assert (inferred.name, inferred.aliases, inferred.fps) == ("so100", (), 30)
    assert inferred.cameras == tuple(f"observation.images.{n}" for n in ("top", "wrist", "laptop"))
    assert inferred.state[0].names[0] == "main_shoulder_pan"
    assert inferred.delta_mask == (True,) * 5 + (False,)
    assert set(inferred.action[0].units) == {"unknown"}


@pytest.mark.parametrize(
    ("robot_type", "name", "aliases"),
    [
        ("SO100 Follower", "so100_follower", ("SO100 Follower",)),
        ("Franka", "franka", ()),
        ("unknown", "generic_s0_a0", ()),
        ("  ", "generic_s0_a0", ()),
        (None, "generic_s0_a0", ()),
        (7, "generic_s0_a0", ()),
        ("机器人", "generic_s0_a0", ()),
        ("generic", "generic_s0_a0", ()),
        ("../../etc", "etc", ("../../etc",)),
    ],
)
def test_the_name_comes_from_the_robot_type_or_the_layout(robot_type, name, aliases):
    inferred = infer_embodiment(info(CAMERA, robot_type))
    assert (inferred.name, inferred.aliases) == (name, aliases)


def test_a_name_can_be_given():
    inferred = infer_embodiment(info(CAMERA, "SO100 Follower"), "mine")
    assert (inferred.name, inferred.aliases) == ("mine", ())


def test_without_state_and_action_it_is_human_video():
    inferred = infer_embodiment(info({"observation.images.egocentric": video()}, fps=29.97))
    assert (inferred.state, inferred.action, inferred.fps) == ((), (), 29.97)
    assert inferred.cameras == ("observation.images.egocentric",)


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (["x", "y"], ("x", "y")),
        ({"motors": ["x", "y"]}, ("x", "y")),
        ({"arm": ["x"], "hand": ["y"]}, ("x", "y")),
        ({"y": 1, "x": 0}, ("x", "y")),
        ([["x", "y"]], ("x", "y")),
        (None, ()),
        ("xy", ()),
        ([1, True], ("1", "True")),
    ],
)
def test_names_of_dimensions_in_every_form(names, read):
    assert dimension_names(vector(2, names)) == read


def test_names_that_do_not_count_the_dimensions_are_made_up():
    state, action = vector(3, ["only", "two"]), vector(3)
    inferred = infer_embodiment(info(CAMERA | {"observation.state": state, "action": action}))
    assert inferred.state[0].names == ("state_0", "state_1", "state_2")
    assert inferred.action[0].names == ("action_0", "action_1", "action_2")
    assert not any(inferred.delta_mask), "nothing says that the action is the state's"


def test_delta_needs_the_same_name_at_the_same_place():
    names = ["a", "b", "c"], ["a", "c", "b", "c"]
    features = {"observation.state": vector(3, names[0]), "action": vector(4, names[1])}
    assert infer_embodiment(info(CAMERA | features)).delta_mask == (True, False, False, False)


def test_one_feature_with_all_dimensions_wins_over_its_parts():
    """As in DROID, which has both."""
    features = {
        "observation.state.gripper_position": vector(1),
        "observation.state": vector(8),
        "action.cartesian_position": vector(6),
        "action": vector(8),
    }
    inferred = infer_embodiment(info(CAMERA | features))
    assert [f.key for f in (*inferred.state, *inferred.action)] == ["observation.state", "action"]


def test_what_are_no_numbers_is_no_state():
    features = {
        "observation.state": {"dtype": "string", "shape": [1]},
        "states.empty": vector(0),
        "states.cloud": {"dtype": "float32", "shape": [100_000, 3]},
        "states.pose": {"dtype": "float64", "shape": [2, 3]},
        "states_extra": vector(2),
    }
    inferred = infer_embodiment(info(CAMERA | features))
    assert [(f.key, f.names[-1]) for f in inferred.state] == [("states.pose", "pose_5")]


@pytest.mark.parametrize(
    ("key", "name", "gripper"),
    [
        ("action", "left_gripper", True),
        ("actions.effector.position", "left", True),
        ("actions.end_effector.position", "x", False),
        ("action", "hand_open", True),
        ("action", "index_finger", True),
        ("action", "Aperture", True),
        ("action", "claw.pos", True),
        ("action", "wrist_roll", False),
        ("action", "left_hand_x", False),
    ],
)
def test_grippers_are_told_by_their_names(key, name, gripper):
    assert is_gripper(key, name) is gripper


@pytest.mark.parametrize(
    ("listed", "kept", "left_out"),
    [
        (["wrist_image_left", "exterior_image_2_left", "exterior_image_1_left"],
         ["exterior_image_1_left", "exterior_image_2_left", "wrist_image_left"], []),
        (["side", "right_wrist", "front", "left_wrist"], ["front", "left_wrist", "right_wrist", "side"], []),
        (["cam_high", "cam_left_wrist", "cam_low", "cam_right_wrist"],
         ["cam_high", "cam_left_wrist", "cam_right_wrist", "cam_low"], []),
        (["head_right_fisheye", "hand_left", "head", "back", "head_left_fisheye", "hand_right"],
         ["head", "hand_left", "hand_right", "back"], ["head_right_fisheye", "head_left_fisheye"]),
        (["cam10", "cam9", "cam1"], ["cam1", "cam9", "cam10"], []),
        (["phone", "laptop"], ["laptop", "phone"], []),
        (["right", "depth_front"], ["right"], ["depth_front"]),
    ],
)  # fmt: skip
def test_cameras_find_their_slots_in_whatever_order_they_are_listed(listed, kept, left_out):
    for _ in range(5):
        ranked = rank_cameras({f"observation.images.{name}": video() for name in listed})
        assert [key.removeprefix("observation.images.") for key in ranked.kept] == kept
        assert {key.removeprefix("observation.images.") for key in ranked.left_out} == set(left_out)
        random.Random(0).shuffle(listed)


def test_cameras_that_are_left_out_are_named(caplog):
    names = ("top", "low", "a", "b", "c", "map")
    features = {f"observation.images.{name}": video() for name in names}
    features["observation.images.map"] |= {"info": {"video.is_depth_map": True}}
    assert len(infer_embodiment(info(features)).cameras) == 4
    assert "left out: observation.images.low, observation.images.map" in caplog.text


@pytest.mark.parametrize(
    ("shape", "names", "size"),
    [
        ([480, 640, 3], None, (480, 640, 3)),
        ([3, 480, 640], None, (480, 640, 3)),
        ([3, 480, 640], ["channels", "height", "width"], (480, 640, 3)),
        ([3, 5, 3], None, (3, 5, 3)),
        ([480, 640], None, None),
        ([0, 0, 3], None, None),
    ],
)
def test_the_size_of_pictures_in_both_orders(shape, names, size):
    assert camera_size({"dtype": "video", "shape": shape, "names": names}) == size


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "features must be a mapping, got None"),
        ({"features": [1]}, r"features must be a mapping, got \[1\]"),
        ({"features": {"a": 1}}, "feature 'a' must state its dtype by name, got 1"),
        ({"features": {"a": {"dtype": 3, "shape": [1]}}}, "must state its dtype by name"),
        ({"features": {"a": {"dtype": "float32"}}}, "'a' must state its shape as whole numbers, got None"),
        ({"features": {"a": {"dtype": "float32", "shape": [-1]}}}, r"shape as whole numbers, got \[-1\]"),
        ({"features": {"a": {"dtype": "float32", "shape": [True]}}}, "shape as whole numbers"),
        ({"features": {7: vector(1)}}, "a feature's name must be text, got 7"),
        ({"features": {"action": vector(1)}}, r"no colour camera \(features: action\)"),
        ({"features": CAMERA}, "fps must be a positive number, got None"),
        ({"features": CAMERA, "fps": float("inf")}, "fps must be a positive number, got inf"),
        ({"features": CAMERA, "fps": True}, "fps must be a positive number, got True"),
    ],
)
def test_a_hostile_info_is_a_sentence(content, message):
    with pytest.raises(ConfigError, match=message):
        infer_embodiment(content)


_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_key = st.sampled_from(
    ["observation.state", "action", "actions.a", "states.b", "observation.images.x"]
) | st.text(max_size=9)
_feature = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["float32", "video", "image", "string"]) | _anything,
     "shape": st.lists(st.integers(0, 5), max_size=3) | _anything},
    optional={"names": _anything, "info": _anything},
)  # fmt: skip


@given(
    st.fixed_dictionaries(
        {"features": st.dictionaries(_key, _feature, max_size=5) | _anything},
        optional={"fps": st.floats() | _anything, "robot_type": _anything},
    )
)
def test_anything_gives_an_embodiment_that_survives_its_yaml_or_a_sentence(content):
    try:
        inferred = infer_embodiment(content)
    except ConfigError:
        return
    assert Embodiment.from_dict(yaml.safe_load(embodiment_yaml(inferred, "a\nb"))) == inferred


def test_the_printed_yaml_is_a_file_that_loads(tmp_path):
    inferred = infer_embodiment(so100())
    text = embodiment_yaml(inferred, "Inferred from a dataset.\nCheck units and delta.")
    assert text.startswith("# Inferred from a dataset.\n# Check units and delta.\nname: so100\nfps: 30.0\n")
    assert "cameras: [observation.images.top, observation.images.wrist, observation.images.laptop]" in text
    (tmp_path / "so100.yaml").write_text(text)
    assert load_embodiment(tmp_path / "so100.yaml") == inferred

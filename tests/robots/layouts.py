"""Feature layouts of real datasets, as their `meta/info.json` has them: those of the design, and public ones."""

from typing import Any


def video(height: int = 480, width: int = 640, **more: Any) -> dict[str, Any]:
    return {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"]} | more


def vector(width: int, names: Any = None) -> dict[str, Any]:
    return {"dtype": "float32", "shape": [width], "names": names}


def info(features: dict[str, Any], robot_type: Any = None, fps: float = 30) -> dict[str, Any]:
    bookkeeping = {key: {"dtype": "int64", "shape": [1], "names": None} for key in ("frame_index", "index")}
    return {"robot_type": robot_type, "fps": fps, "features": features | bookkeeping}


def so100() -> dict[str, Any]:
    """A desk arm as the community records it: v2.1-style names, cameras in no particular order."""
    joints = [
        f"main_{j}" for j in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
    ]
    names = {"motors": [*joints, "main_gripper"]}
    return info(
        {
            "action": vector(6, names),
            "observation.state": vector(6, names),
            "observation.images.wrist": video(),
            "observation.images.laptop": video(),
            "observation.images.top": video(),
        },
        "so100",
    )


def _arms(
    *parts: tuple[str, int], cameras: tuple[str, ...] = ("head", "hand_left", "hand_right")
) -> dict[str, Any]:
    pictures = {f"images.rgb.{name}": video() for name in cameras}
    state = {f"states.{part}.position": vector(width) for part, width in parts}
    return info(pictures | state | {f"actions.{part}.position": vector(width) for part, width in parts})


_SIX = (("left_joint", 6), ("left_gripper", 1), ("right_joint", 6), ("right_gripper", 1))
_ARM = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
_MOTORS = {"motors": [f"{side}_{joint}" for side in ("left", "right") for joint in _ARM]}

LAYOUTS: dict[str, dict[str, Any]] = {
    "piper": _arms(*_SIX),
    "arx_lift2": _arms(*_SIX),
    "split_aloha": _arms(*_SIX),
    "arx_ac_one": _arms(*_SIX),
    "genie1": _arms(("left_joint", 7), ("right_joint", 7), ("left_gripper", 1), ("right_gripper", 1)),
    "franka": _arms(("joint", 7), ("gripper", 1), cameras=("head", "hand")),
    "a2d": info(
        {f"observation.images.{name}": video() for name in ("hand_right", "head", "hand_left")}
        | {"observation.states.joint.position": vector(14), "observation.states.effector.position": vector(2)}
        | {"actions.joint.position": vector(14), "actions.effector.position": vector(2)}
    ),
    "aloha": info(
        {"observation.state": vector(14, _MOTORS), "action": vector(14, _MOTORS)}
        | {f"observation.images.{n}": video() for n in ("cam_left_wrist", "cam_right_wrist", "cam_high")}
    ),
    "panda": info(
        {"observation.images.image": video(256, 256), "observation.images.image2": video(256, 256)}
        | {
            "observation.state": vector(
                8, {"motors": ["x", "y", "z", "roll", "pitch", "yaw", "gripper", "gripper"]}
            )
        }
        | {"action": vector(7, {"motors": ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]})}
    ),
}
"""One dataset of every robot of the design, without its robot type."""

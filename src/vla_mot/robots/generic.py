"""An embodiment read off a dataset's own features, for a robot that nobody has described yet.

A dataset does not say which of its dimensions are grippers, what their units are, or which camera is the head's; names
do, more or less. What is inferred here is printed as YAML, so that a user can look at it and correct it.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from vla_mot.errors import ConfigError
from vla_mot.robots.embodiment import Embodiment, Field
from vla_mot.robots.features import (
    dataset_features,
    dimension_names,
    feature_width,
    is_camera,
    is_depth,
    is_vector,
)

log = logging.getLogger(__name__)

MAX_CAMERAS = 4
UNKNOWN_UNIT = "unknown"

_STATE = ("observation.state", "observation.states", "state", "states")
_ACTION = ("action", "actions")
_NO_ROBOT = ("", "unknown", "none", "null", "unnamed", "generic", "auto")
_GRIPPER = re.compile(
    r"gripper|(?<!end)(?<!end[\W_])effector|finger|thumb|aperture|claw|jaw|hand[\W_]?(open|clos)|opening|openness",
    re.IGNORECASE,
)
_HEAD = ("head", "top", "high", "front", "main", "image", "exterior", "overhead", "base", "primary", "static",
         "agentview", "ego", "egocentric", "third", "scene", "external", "global", "center", "chest")  # fmt: skip
_WRIST = ("wrist", "hand", "gripper", "eef", "arm", "palm")
_CAMERA_PREFIX = re.compile(r"^(observations?\.)?(images?\.)?(rgb\.)?(?=.)")


def infer_embodiment(info: Mapping[str, Any], name: str | None = None) -> Embodiment:
    """Describe the robot of a LeRobot dataset by the dataset's own features.

    info: the content of `meta/info.json`. name: of the embodiment; by default the robot type in lower case, else the
    layout, such as `generic_s6_a6`.

    An action dimension is a delta where the state has the same name at the same place and no gripper is meant; every
    unit is `unknown`. Without state and action it is human video, which trains foresight only. At most four cameras
    are kept, the head's first; others are named in the log.
    Raises ConfigError when the features are not described as LeRobot does, or there is no colour camera.
    """
    features = dataset_features(info)
    cameras = rank_cameras(features)
    if not cameras.kept:
        raise ConfigError(
            f"no embodiment can be inferred: the dataset has no colour camera (features: {_listed(features)}). "
            "Foresight and understanding need one."
        )
    if cameras.left_out:
        log.warning("cameras that are left out: %s", ", ".join(cameras.left_out))
    state = _fields(features, _STATE)
    action = _fields(features, _ACTION)
    names = [(field.key, name) for field in state for name in field.names]
    robot_type = _robot_type(info)
    return Embodiment(
        name=name or _clean(robot_type) or f"generic_s{len(names)}_a{sum(len(f.names) for f in action)}",
        fps=_rate(info),
        state=state,
        action=_with_deltas(action, [name for _, name in names]),
        cameras=cameras.kept,
        aliases=() if name else _aliases(robot_type),
    )


@dataclass(frozen=True)
class RankedCameras:
    """Image features by slot, and those that have none: beyond the fourth, or depth instead of colour."""

    kept: tuple[str, ...]
    left_out: tuple[str, ...]


def rank_cameras(features: Mapping[str, Mapping[str, Any]]) -> RankedCameras:
    """Order cameras by what their names say: head-like ones, the left wrist, the right one, others.

    features: checked ones, as `dataset_features` returns them. The order of the dataset does not matter.
    """
    pictures = [key for key, spec in features.items() if is_camera(spec)]
    depth = [key for key in pictures if is_depth(key, features[key])]
    colour = sorted((key for key in pictures if key not in depth), key=_camera_rank)
    # The best of each kind before a second one of the same: three heads must not push out the wrists.
    firsts = [key for i, key in enumerate(colour) if i == 0 or _kind(colour[i - 1]) != _kind(key)]
    chosen = [*firsts, *(key for key in colour if key not in firsts)][:MAX_CAMERAS]
    left_out = [key for key in pictures if key not in chosen]
    return RankedCameras(tuple(key for key in colour if key in chosen), tuple(left_out))


def embodiment_yaml(embodiment: Embodiment, comment: str = "") -> str:
    """The embodiment as a file of `conf/embodiment/`, to be saved and edited; comment: lines for its top."""
    plain = embodiment.to_dict()
    if not plain["aliases"]:
        del plain["aliases"]
    for field in plain["state"]:
        del field["delta"]
    order = ("name", "aliases", "fps", "state", "action", "cameras")
    text = yaml.safe_dump(
        {key: plain[key] for key in order if key in plain},
        sort_keys=False,
        default_flow_style=None,  # lists of scalars in one line, as in the packaged files
        width=float("inf"),
        allow_unicode=True,
    )
    return "".join(f"# {line}\n" for line in comment.splitlines()) + text


# ---- state and action ---------------------------------------------------------------------------------------


def _fields(features: Mapping[str, Mapping[str, Any]], wholes: Sequence[str]) -> tuple[Field, ...]:
    """The one feature that holds all dimensions where there is one, else its parts in the dataset's order."""
    vectors = [key for key, spec in features.items() if is_vector(spec)]
    whole = [key for key in wholes if key in vectors][:1]
    parts = [key for key in vectors if key.startswith(tuple(f"{prefix}." for prefix in wholes))]
    return tuple(_field(key, features[key], wholes) for key in whole or parts)


def _field(key: str, spec: Mapping[str, Any], wholes: Sequence[str]) -> Field:
    width, names = feature_width(spec), dimension_names(spec)
    if len(names) != width:
        stem = _stem(key, wholes)
        names = (stem,) if width == 1 else tuple(f"{stem}_{i}" for i in range(width))
    return Field(key, names, (UNKNOWN_UNIT,) * width)


def _stem(key: str, wholes: Sequence[str]) -> str:
    """What nameless dimensions are called: `observation.states.joint.position` → `joint_position`.

    A state and an action of the same stem mean the same thing; `observation.state` and `action` promise nothing.
    """
    prefix = next((f"{whole}." for whole in wholes if key.startswith(f"{whole}.")), "")
    return _clean(key.removeprefix(prefix).removeprefix("observation.")) or "dim"


def _with_deltas(action: Sequence[Field], state: Sequence[str]) -> tuple[Field, ...]:
    placed, start = [], 0
    for field in action:
        alike = state[start : start + len(field.names)]
        delta = tuple(
            i < len(alike) and alike[i] == name and not is_gripper(field.key, name)
            for i, name in enumerate(field.names)
        )
        placed.append(replace(field, delta=delta))
        start += len(field.names)
    return tuple(placed)


def is_gripper(key: str, name: str) -> bool:
    """True where a dimension's name, or its feature's, says that it opens and closes a hand."""
    return bool(_GRIPPER.search(name) or _GRIPPER.search(key))


# ---- names --------------------------------------------------------------------------------------------------


def _robot_type(info: Mapping[str, Any]) -> str:
    told = info.get("robot_type")
    return told.strip() if isinstance(told, str) else ""


def _clean(text: str) -> str:
    """Lower case letters and digits, joined by underscores; empty for what names no robot."""
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:64]
    return "" if name in _NO_ROBOT else name


def _aliases(robot_type: str) -> tuple[str, ...]:
    """The robot type itself where its clean form is another word, so that `auto` finds a saved file."""
    return (robot_type,) if _clean(robot_type) not in ("", robot_type.lower()) else ()


def _rate(info: Mapping[str, Any]) -> float:
    fps = info.get("fps")
    if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps < float("inf"):
        raise ConfigError(f"meta/info.json: fps must be a positive number, got {fps!r}.")
    return float(fps)


def _kind(key: str) -> int:
    return _camera_rank(key)[0]


def _camera_rank(key: str) -> tuple[int, int, list[tuple[str, int]], str]:
    """Sorts cameras: kind (0 head, 1 left wrist or only one, 2 right, 3 other), place in `_HEAD`, natural order."""
    natural = [(text, int(number or 0)) for text, number in re.findall(r"(\D+)([0-9]{0,9})", key)]
    words = re.findall(r"[a-z]+", _CAMERA_PREFIX.sub("", key.lower()))
    place = next((i for i, word in enumerate(_HEAD) if word in words), None)
    at_wrist = any(word in _WRIST for word in words)
    if place is not None and not at_wrist:
        return 0, place, natural, key
    if "right" in words:
        return 2, 0, natural, key
    return (1 if "left" in words or at_wrist else 3), 0, natural, key


def _listed(features: Mapping[str, Any], most: int = 12) -> str:
    return (", ".join(list(features)[:most]) + (", …" if len(features) > most else "")) or "none"

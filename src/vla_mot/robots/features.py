"""The features of a LeRobot dataset, as its `meta/info.json` lists them: widths, names of dimensions, cameras.

Everything here takes an untrusted mapping and says which key does not fit.
"""

import math
from collections.abc import Mapping
from typing import Any

from vla_mot.errors import ConfigError

IMAGE_TYPES = ("video", "image")
_NUMBERS = ("float", "int", "uint", "bool")
_CHANNELS = 3
_WIDEST = 4096
"""Dimensions of one feature; beyond this it is no state or action (a point cloud, a depth map in the table)."""


def dataset_features(info: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return `info["features"]`, in its order, with every dtype a name and every shape a list of whole numbers.

    Raises ConfigError naming the first feature that is not described like that.
    """
    features = info.get("features")
    if not isinstance(features, Mapping):
        raise ConfigError(f"meta/info.json: features must be a mapping, got {_short(features)}.")
    for key, spec in features.items():
        if not isinstance(key, str) or not key:
            raise ConfigError(f"meta/info.json: a feature's name must be text, got {_short(key)}.")
        if not isinstance(spec, Mapping) or not isinstance(spec.get("dtype"), str):
            raise ConfigError(
                f"meta/info.json: feature {key!r} must state its dtype by name, got {_short(spec)}."
            )
        shape = spec.get("shape")
        if not isinstance(shape, list | tuple) or not all(_is_size(size) for size in shape):
            raise ConfigError(
                f"meta/info.json: feature {key!r} must state its shape as whole numbers, got {_short(shape)}."
            )
    return dict(features)


def feature_width(spec: Mapping[str, Any]) -> int:
    """Number of dimensions of a feature: the product of its shape."""
    return math.prod(spec["shape"])


def is_camera(spec: Mapping[str, Any]) -> bool:
    """True for pictures, in video files or in the table."""
    return spec["dtype"] in IMAGE_TYPES


def is_vector(spec: Mapping[str, Any]) -> bool:
    """True for numbers that can be a part of a state or an action."""
    return spec["dtype"].startswith(_NUMBERS) and 0 < feature_width(spec) <= _WIDEST


def camera_size(spec: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Return (height, width, channels) of a camera's pictures, or None where the shape is no picture's.

    Recorded as (height, width, channels), or (channels, height, width) in some older datasets; `names` tells.
    """
    shape = tuple(spec["shape"])
    if len(shape) != 3 or min(shape) < 1:
        return None
    names = dimension_names(spec)
    named_first = bool(names) and names[0].lower() in ("channels", "channel", "c")
    first = named_first or (shape[0] in (1, _CHANNELS) and shape[2] not in (1, _CHANNELS))
    return (shape[1], shape[2], shape[0]) if first else (shape[0], shape[1], shape[2])


def is_depth(key: str, spec: Mapping[str, Any]) -> bool:
    """True for pictures that hold distances instead of colours."""
    about = spec.get("info")
    flagged = isinstance(about, Mapping) and any(
        value is True and "depth" in str(name) for name, value in about.items()
    )
    size = camera_size(spec)
    return flagged or "depth" in key.lower() or (size is not None and size[2] == 1)


def dimension_names(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a feature's dimensions, in order; empty where it has none.

    LeRobot's datasets write them as a list, as `{group: [name, …]}`, or as `{name: index}`.
    """
    names: Any = spec.get("names")
    if isinstance(names, Mapping):
        if names and all(_is_size(place) for place in names.values()):
            return tuple(map(str, sorted(names, key=names.__getitem__)))
        names = [name for group in names.values() for name in (group if isinstance(group, list) else [group])]
    if not isinstance(names, list | tuple):
        return ()
    flat = [name for part in names for name in (part if isinstance(part, list) else [part])]
    return tuple(str(name) for name in flat if name is not None)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _short(value: Any, most: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"

"""From a decoded message to a request whose every part was looked at, before it may wait beside others' requests.

Keys are LeRobot's: the robot's cameras and state features, `prompt` or `task`; see docs/serving.md for the rest.
Nested maps and `/` are spelt out with dots, so that `{"images": {"head": …}}` and `images/head` are `images.head`.

Legend: `h`/`w` a camera's own pixels, `S` state dims.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_mot.errors import unknown_name
from vla_mot.infer.server.config import MAX_SEED
from vla_mot.infer.server.errors import invalid
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.images import fitted_size

STATE = "observation.state"
"""The whole state in one array, whatever the features that it is made of are called."""
MAX_SIDE = 4096  # pixels
_MAX_STEP = 2**53
_MAX_CHUNK = 1000  # steps; more than any policy predicts
_TEXTS = ("prompt", "task")
_LEFT_OVER = "left_over"
_CONTROLS = ("embodiment", "step", "seed", "reset", "remember", "deadline_ms", "delay")


@dataclass(frozen=True)
class Controls:
    """What a request says about itself.

    embodiment: the robot, where the server drives several. step: control steps since the episode began.
    seed: of the noise from now on. reset: a new episode begins. remember: keep the pictures, predict nothing.
    deadline_ms: milliseconds after its arrival at which an answer is of no use any more. delay: control steps that will
    have been executed of the last chunk when this one arrives; it is made to go on with that one.
    """

    embodiment: str | None = None
    step: int | None = None
    seed: int | None = None
    reset: bool = False
    remember: bool = False
    deadline_ms: float | None = None
    delay: int | None = None


@dataclass(frozen=True)
class Seen:
    """What a robot sees and is told. images, history: camera → `(h, w, 3)` uint8, frames t and t − m.

    history: empty unless the request carried it. state: `(S,)` float32 in physical units; None in a `remember`.
    left_over: `(R, D)` float32, the actions that the last chunk still has, where the client says so itself.
    """

    images: Mapping[str, np.ndarray]
    history: Mapping[str, np.ndarray] = field(default_factory=dict)
    state: np.ndarray | None = None
    instruction: str = ""
    left_over: np.ndarray | None = None


def flatten(message: Mapping[str, Any], rename: Mapping[str, str]) -> dict[str, Any]:
    """Spell nested keys out with dots and give them the robot's names. Raises RequestError where two become one."""
    found: dict[str, Any] = {}
    for key, value in _leaves(message, ""):
        name = rename.get(key, key)
        if name in found:
            raise invalid(f"{name!r} stands twice in the request.")
        found[name] = value
    return found


def dotted(key: str) -> str:
    """A key as `flatten` spells it."""
    return key.replace("/", ".")


def _leaves(message: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in message.items():
        name = prefix + dotted(key)
        if isinstance(value, dict):
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def take_controls(parts: dict[str, Any]) -> Controls:
    """Take what a request says about itself out of its parts. Raises RequestError for what makes no sense."""
    given = {name: parts.pop(name) for name in _CONTROLS if parts.get(name) is not None}
    for name in _CONTROLS:
        parts.pop(name, None)
    for name in ("reset", "remember"):
        if name in given and type(given[name]) is not bool:
            raise invalid(f"{name} is true or false, got {_told(given[name])}.")
    for name, most in (("step", _MAX_STEP), ("seed", MAX_SEED), ("delay", _MAX_STEP)):
        if name in given and not (type(given[name]) is int and 0 <= given[name] <= most):
            raise invalid(f"{name} is a whole number in 0 … {most}, got {_told(given[name])}.")
    limit = given.get("deadline_ms")
    if limit is not None and not (type(limit) in (int, float) and 0 < limit < 1e9):
        raise invalid(f"deadline_ms is a number of milliseconds above 0, got {_told(limit)}.")
    if not isinstance(given.get("embodiment", ""), str):
        raise invalid(f"embodiment is the name of a robot, got {_told(given['embodiment'])}.")
    return Controls(**given)


def read_seen(
    parts: Mapping[str, Any], robot: Embodiment, view_size: tuple[int, int], *, only_images: bool = False
) -> Seen:
    """Read what a robot of this embodiment sees. only_images: state and instruction may be missing.

    view_size: (height, width) that every picture is fitted into. Raises RequestError naming the key, what was
    expected and what came.
    """
    cameras = [key for _, key in robot.present_cameras]
    fields = [part.key for part in robot.state]
    _require_known(parts, list(dict.fromkeys([*cameras, *fields, STATE, *_TEXTS, _LEFT_OVER])))
    if missing := [key for key in cameras if key not in parts]:
        raise invalid(
            f"robot {robot.name!r} expects the cameras {', '.join(cameras)}; missing: {missing[0]!r}."
        )
    frames = {key: _frames(key, parts[key], view_size) for key in cameras}
    if len({len(found) for found in frames.values()}) > 1:
        raise invalid("either all cameras carry their history, as (2, h, w, 3), or none does.")
    past = {key: found[0] for key, found in frames.items() if len(found) == 2}
    present = {key: found[-1] for key, found in frames.items()}
    if only_images:
        return Seen(present, past)
    left_over = _left_over(parts.get(_LEFT_OVER), robot)
    return Seen(present, past, _state(parts, robot), _instruction(parts), left_over)


def _require_known(parts: Mapping[str, Any], known: list[str]) -> None:
    for key in parts:
        if key not in known:
            hint = unknown_name("key", key[:80], [*known, *_CONTROLS])
            raise invalid(f"{hint} Leave out what the robot has not, or map it with the server's rename.")


def _frames(key: str, value: Any, view_size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """The present frame, or the past and the present one, as `(h, w, 3)`."""
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim not in (3, 4):
        raise invalid(f"{key}: expected a uint8 array (h, w, 3) or (2, h, w, 3), got {_told(value)}.")
    if value.ndim == 4 and len(value) != 2:
        raise invalid(f"{key}: with history a camera has two frames, t − m and t, got {_told(value)}.")
    pictures = value if value.ndim == 4 else value[None]
    if pictures.shape[-1] != 3:
        if pictures.shape[1] != 3:
            raise invalid(f"{key}: expected three colours, first or last, got {_told(value)}.")
        pictures = np.moveaxis(pictures, 1, -1)
    height, width = pictures.shape[1:3]
    if max(height, width) > MAX_SIDE:
        raise invalid(f"{key}: a picture has at most {MAX_SIDE} pixels a side, got {height} × {width}.")
    if min(fitted_size(height, width, *view_size)) < 1:
        raise invalid(f"{key}: {height} × {width} pixels are too narrow to fit into {view_size}.")
    return tuple(pictures)


def _state(parts: Mapping[str, Any], robot: Embodiment) -> np.ndarray:
    widths = {part.key: len(part.names) for part in robot.state}
    whole = STATE in parts and widths.keys() != {STATE}
    if whole and widths.keys() & (parts.keys() - {STATE}):
        raise invalid(f"give the state as {STATE!r} or by its features, not both.")
    if whole:
        widths = {STATE: robot.state_dim}
    state = np.concatenate(
        [np.zeros(0, np.float32), *(_vector(key, parts.get(key), n) for key, n in widths.items())]
    )
    return state.astype(np.float32)


def _left_over(value: Any, robot: Embodiment) -> np.ndarray | None:
    if value is None:
        return None
    if not isinstance(value, np.ndarray) or value.ndim != 2:
        raise invalid(f"{_LEFT_OVER}: expected an array (steps, {robot.action_dim}), got {_told(value)}.")
    return np.stack([_vector(_LEFT_OVER, row, robot.action_dim) for row in value[:_MAX_CHUNK]])


def _vector(key: str, value: Any, width: int) -> np.ndarray:
    if isinstance(value, list) and all(type(item) in (int, float) for item in value):
        value = np.array(value, np.float64)
    if not isinstance(value, np.ndarray) or value.shape != (width,) or value.dtype == np.bool_:
        raise invalid(f"{key}: expected {width} numbers, got {_told(value)}.")
    with np.errstate(over="ignore"):
        numbers = value.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise invalid(f"{key}: not every number is finite.")
    return numbers


def _instruction(parts: Mapping[str, Any]) -> str:
    given = [parts[key] for key in _TEXTS if parts.get(key) is not None]
    if len(given) != 1 or not isinstance(given[0], str) or not given[0].strip():
        came = _told(given[0]) if len(given) == 1 else f"{len(given)} of them"
        raise invalid(f"the instruction is a text under 'prompt' or 'task', got {came}.")
    return given[0]


def _told(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return f"{str(value)[:40]!r}" if isinstance(value, str | int | float | bool) else type(value).__name__

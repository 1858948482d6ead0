"""A robot as the library knows it: state and action layout, units, delta dimensions and cameras.

Embodiments are YAML files (`conf/embodiment/*.yaml`), so that a user adds a robot without touching the source:

    name: conveyor
    fps: 10
    state:
      - {key: observation.state, names: [x, y], units: [m, m]}
    action:
      - {key: action, names: [x, y], units: [m, m], delta: [true, true]}
    cameras: [observation.images.head, null, null]
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from vla_mot.errors import ConfigError
from vla_mot.options import section

CAMERA_PREFIX = "observation.images."
"""Before a camera's short name in the image features of LeRobot."""

ONLY_CAMERA = "observation.image"
"""LeRobot's image feature of an environment whose camera has no name."""


def camera_feature(camera: str) -> str:
    """The image feature of a camera's short name; LeRobot's one without a name is itself."""
    return camera if camera == ONLY_CAMERA else CAMERA_PREFIX + camera


def folded(name: str) -> str:
    """A robot's name or alias as names are compared: case and repeated blanks mean nothing."""
    return " ".join(name.casefold().split())


@dataclass(frozen=True)
class Field:
    """One dataset feature that contributes dimensions to the state or the action.

    key: the LeRobot feature, e.g. `observation.state`.
    names, units: one entry per dimension, e.g. `("x", "y")`, `("m", "m")`.
    delta: per dimension, True where the action is predicted relative to the state at the chunk's start
        (always all False for a state).
    """

    key: str
    names: tuple[str, ...]
    units: tuple[str, ...]
    delta: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if not self.delta:
            object.__setattr__(self, "delta", (False,) * len(self.names))
        if not len(self.names) == len(self.units) == len(self.delta):
            raise ConfigError(
                f"feature {self.key!r} lists {len(self.names)} names, {len(self.units)} units and "
                f"{len(self.delta)} delta flags; each dimension needs one of each. Fix the embodiment's YAML."
            )


@dataclass(frozen=True)
class Embodiment:
    """A robot: what its datasets call its state, its actions and its cameras.

    name: the one lower-case spelling; `aliases` are what datasets call it.
    fps: control and recording rate in Hz; chunks and the foresight offset count in its frames. None: the dataset's.
    state, action: features in the order in which their dimensions are concatenated.
    cameras: the LeRobot image feature of each camera slot, None where the slot is absent.

    A delta dimension i of the action is relative to dimension i of the state, as in the released checkpoints.
    """

    name: str
    fps: float | None
    state: tuple[Field, ...]
    action: tuple[Field, ...]
    cameras: tuple[str | None, ...]
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.name != self.name.lower():
            raise ConfigError(
                f"embodiment name {self.name!r} must be lower case: write {self.name.lower()!r}."
            )
        if self.fps is not None and not self.fps > 0:
            raise ConfigError(f"embodiment {self.name!r}: fps must be positive, got {self.fps}.")
        if not self.present_cameras:
            raise ConfigError(
                f"embodiment {self.name!r} has no camera, got {list(self.cameras)}; name the image feature of at least "
                "one slot under `cameras` in its YAML."
            )
        self._require_once("image feature", [key for _, key in self.present_cameras])
        self._require_once("state feature", [field.key for field in self.state])
        self._require_once("action feature", [field.key for field in self.action])
        if relative := [field.key for field in self.state if any(field.delta)]:
            raise ConfigError(
                f"embodiment {self.name!r}: state feature {relative[0]!r} has delta: true; only an action is relative "
                "to the state. Take `delta` out of it in its YAML."
            )
        deepest = max((i for i, delta in enumerate(self.delta_mask) if delta), default=-1)
        if deepest >= self.state_dim:
            raise ConfigError(
                f"embodiment {self.name!r}: action dimension {deepest} is a delta, but the state has only "
                f"{self.state_dim} dimensions to be relative to. Fix `delta` in its YAML."
            )

    def _require_once(self, kind: str, keys: list[str]) -> None:
        """Raise ConfigError for a feature that is listed twice."""
        if twice := [key for place, key in enumerate(keys) if key in keys[:place]]:
            raise ConfigError(
                f"embodiment {self.name!r} lists {kind} {twice[0]!r} twice; each feature has one place. Fix its YAML."
            )

    @property
    def state_dim(self) -> int:
        """Number of real state dimensions."""
        return sum(len(field.names) for field in self.state)

    @property
    def action_dim(self) -> int:
        """Number of real action dimensions."""
        return sum(len(field.names) for field in self.action)

    @property
    def delta_mask(self) -> tuple[bool, ...]:
        """Per action dimension, True where the chunk is relative to the state at its start."""
        return tuple(delta for field in self.action for delta in field.delta)

    @property
    def present_cameras(self) -> tuple[tuple[int, str], ...]:
        """(slot, image feature) of every camera that the robot has."""
        return tuple((slot, key) for slot, key in enumerate(self.cameras) if key is not None)

    def is_called(self, name: str) -> bool:
        """Whether that is its name or an alias, whatever the case."""
        return folded(name) in map(folded, (self.name, *self.aliases))

    def without_actions(self) -> "Embodiment":
        """The robot less state and actions, `<name>_video`, which trains foresight only; itself where it has none."""
        if not self.state and not self.action:
            return self
        return replace(self, name=f"{self.name}_video", aliases=(), state=(), action=())

    def frames(self, *, frames: int | None = None, seconds: float | None = None) -> int:
        """Return a duration in frames of this robot, from frames or from seconds (exactly one is given).

        Raises ConfigError when both or neither are given, or when the seconds are no whole number of frames.
        """
        if (frames is None) == (seconds is None):
            raise ConfigError(f"state a duration in frames or in seconds, not both: {frames=}, {seconds=}.")
        if seconds is None:
            return int(frames)  # type: ignore[arg-type]
        if self.fps is None:
            raise ConfigError(
                f"{seconds} s cannot be counted in frames: embodiment {self.name!r} states no fps; say frames instead."
            )
        exact = seconds * self.fps
        if abs(exact - round(exact)) > 1e-6:
            raise ConfigError(
                f"{seconds} s is {exact:g} frames at {self.fps:g} fps of embodiment {self.name!r}; "
                "choose a whole number of frames."
            )
        return round(exact)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and scalars, as written to YAML and to a checkpoint's `config.json`."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> "Embodiment":
        """Build from a YAML or JSON mapping. Raises ConfigError naming the field that does not fit."""
        return section(cls, "embodiment", spec)

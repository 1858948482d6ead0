"""Everything about a policy but its weights, as written to `config.json` and `stats.json`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from vla_mot.errors import ConfigError
from vla_mot.flow.solvers import Solver
from vla_mot.hub.released_files import ReleasedFiles
from vla_mot.model.config import ModelConfig
from vla_mot.options import at_least, fit, within
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.processor import Processor, Tokenize
from vla_mot.robots.robot import Robot, choose_robot
from vla_mot.robots.statistics_file import native_content, read_native

TYPE = "vla_mot"
MAX_STEPS = 10_000  # of the sampler: more is no sampler but a robot that never moves
WeightsDtype = Literal["float32", "bfloat16", "mixed"]
_NEEDED: dict[str, Any] = {
    "model": Mapping[str, Any],
    "embodiments": tuple[Mapping[str, Any], ...],
    "num_steps": int,
    "n_action_steps": int,
    "dtype": WeightsDtype,
}


@dataclass(frozen=True)
class SamplerConfig:
    """num_steps: from noise to actions. n_action_steps: how many steps of a chunk are executed before the next one.

    solver: what carries noise over one step, see `vla_mot.flow.solvers`.
    """

    num_steps: int = 10
    n_action_steps: int = 50
    solver: Solver = "euler"

    def __post_init__(self) -> None:
        fit(Solver, "sampler.solver", self.solver)
        within(1, MAX_STEPS, {"sampler.num_steps": self.num_steps})
        at_least(1, {"sampler.n_action_steps": self.n_action_steps})


@dataclass(frozen=True)
class PolicySpec:
    """Everything about a policy but its weights.

    model: the architecture. robots: whom the policy can drive; without any it can only be inspected or trained on.
    dtype: of the stored weights. `bfloat16` keeps some norms in float32 (`VlaMotModel.keeps_float32`); `mixed` says
        nothing: every tensor has a dtype of its own.
    released: where the policy came from a checkpoint in the authors' layout.
    """

    model: ModelConfig
    robots: tuple[Robot, ...]
    sampler: SamplerConfig
    dtype: WeightsDtype = "float32"
    released: ReleasedFiles | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.sampler.n_action_steps <= self.model.chunk_size:
            raise ConfigError(
                f"n_action_steps must lie in 1 … chunk_size = {self.model.chunk_size}, "
                f"got {self.sampler.n_action_steps}; see conf/sampler/."
            )
        for robot in self.robots:
            require_fit(robot, self.model)
        names = [str(robot) for robot in self.robots]
        if len(set(names)) < len(names):
            raise ConfigError(f"a robot is listed twice: {', '.join(sorted(names))}.")

    def with_sampler(
        self, *, num_steps: int | None, n_action_steps: int | None, solver: Solver | None
    ) -> "PolicySpec":
        """The same with another sampler; None keeps what it has."""
        asked = {"num_steps": num_steps, "n_action_steps": n_action_steps, "solver": solver}
        changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        return replace(self, sampler=replace(self.sampler, **changes))

    def robot(self, embodiment: str | None = None, action_mode: str | None = None) -> Robot:
        """The robot of that name and action mode. Raises ConfigError unless exactly one fits."""
        return choose_robot(self.robots, embodiment, action_mode)

    def processor(self, robot: Robot, tokenize: Tokenize) -> Processor:
        """What turns a robot's units into this model's tensors; `tokenize` is the backbone's."""
        return Processor(
            robot=robot,
            tokenize=tokenize,
            image_size=self.model.view_size,
            state_width=self.model.max_state_dim,
            action_width=self.model.max_action_dim,
            # The released sampler counts the tokens of absent cameras, so they must be there to be counted.
            slots=self.model.num_views if self.model.positions == "released" else None,
        )

    def config_dict(self) -> dict[str, Any]:
        """The content of `config.json`. LeRobot's features, and a choice of robot, are in it when there is just one."""
        only = self.robots[0] if len(self.robots) == 1 else None
        embodiments = {robot.embodiment.name: robot.embodiment.to_dict() for robot in self.robots}
        return {
            "type": TYPE,
            "n_obs_steps": 1,
            "input_features": _input_features(only, self.model),
            "output_features": _output_features(only),
            "chunk_size": self.model.chunk_size,
            "n_action_steps": self.sampler.n_action_steps,
            "num_steps": self.sampler.num_steps,
            "solver": self.sampler.solver,
            "dtype": self.dtype,
            "embodiment": only.embodiment.name if only else None,
            "action_mode": only.action_mode if only else None,
            "model": self.model.to_dict(),
            "embodiments": list(embodiments.values()),
        }

    def statistics_dict(self) -> dict[str, Any]:
        """The content of `stats.json`: embodiment → action mode → statistics."""
        return native_content(robot.statistics for robot in self.robots)

    @classmethod
    def from_dicts(cls, config: Mapping[str, Any], statistics: Mapping[str, Any]) -> "PolicySpec":
        """The inverse of `config_dict` and `statistics_dict`. Raises ConfigError for what does not fit."""
        missing = [key for key in _NEEDED if key not in config]
        if missing:
            raise ConfigError(
                f"config.json lacks {', '.join(missing)}; it is no complete vla_mot configuration."
            )
        given = {key: fit(kind, key, config[key]) for key, kind in _NEEDED.items()}
        embodiments = {e.name: e for e in map(Embodiment.from_dict, given["embodiments"])}
        if embodiments.keys() != statistics.keys():
            raise ConfigError(
                f"config.json describes embodiments {', '.join(embodiments) or 'none'}, but stats.json has statistics "
                f"of {', '.join(statistics) or 'none'}."
            )
        robots = [Robot(embodiments[numbers.embodiment], numbers) for numbers in read_native(statistics)]
        chosen = {key: config.get(key) for key in ("embodiment", "action_mode")}
        if any(chosen.values()):
            choose_robot(robots, **chosen)
        return cls(
            model=ModelConfig.from_dict(given["model"]),
            robots=tuple(robots),
            sampler=SamplerConfig(given["num_steps"], given["n_action_steps"], config.get("solver", "euler")),
            dtype=given["dtype"],
        )


def require_fit(robot: Robot, model: ModelConfig) -> None:
    """Raise ConfigError unless a model of this architecture can drive the robot."""
    robot.statistics.require(
        embodiment=robot.embodiment.name, action_mode=robot.action_mode, chunk_size=model.chunk_size
    )
    for what, width, room in (
        ("state", robot.embodiment.state_dim, model.max_state_dim),
        ("action", robot.embodiment.action_dim, model.max_action_dim),
    ):
        if width > room:
            raise ConfigError(
                f"the {what} of embodiment {robot.embodiment.name!r} has {width} dimensions, the model room for {room} "
                f"(model.max_{what}_dim); only a new model can be given more, in conf/model/."
            )
    slots = len(robot.embodiment.cameras)
    if slots > model.num_views:
        raise ConfigError(
            f"embodiment {robot.embodiment.name!r} has {slots} camera slots, the model {model.num_views}; "
            "raise num_views in conf/model/."
        )


def _input_features(robot: Robot | None, model: ModelConfig) -> dict[str, Any]:
    if robot is None:
        return {}
    image = {"type": "VISUAL", "shape": [3, *model.view_size]}
    views: dict[str, Any] = {key: image for _, key in robot.embodiment.present_cameras}
    return views | {f.key: {"type": "STATE", "shape": [len(f.names)]} for f in robot.embodiment.state}


def _output_features(robot: Robot | None) -> dict[str, Any]:
    return {} if robot is None else {"action": {"type": "ACTION", "shape": [robot.embodiment.action_dim]}}

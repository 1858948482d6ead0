"""The robots that can be simulated: how to make the environment, its expert, and its demonstrations.

Adding a simulator: an entry in `SIMULATORS`, and a file in conf/env/.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vla_mot.errors import ConfigError, unknown_name
from vla_mot.robots.embodiment import CAMERA_PREFIX

if TYPE_CHECKING:
    import gymnasium as gym

    from vla_mot.evaluate.controllers import Controller

Frame = dict[str, Any]
MakeEnv = Callable[[], "gym.Env"]


@dataclass(frozen=True)
class Demonstration:
    """One episode of an expert: what was recorded, and the environment's verdict."""

    frames: list[Frame]
    verdict: str


class Demonstrate(Protocol):
    """(environment, noise options, first seed, share of static scenes) → endless demonstrations."""

    def __call__(
        self, options: Mapping[str, Any], noise: Mapping[str, Any], seed: int, static_fraction: float
    ) -> Iterator[Demonstration]: ...


@dataclass(frozen=True)
class Simulator:
    """make: environment options → environment, with its control rate in `metadata["render_fps"]`.

    expert: steps executed per plan → scripted controller.
    """

    make: Callable[[Mapping[str, Any]], "gym.Env"]
    expert: Callable[[int], "Controller"]
    demonstrate: Demonstrate


def find(env: Mapping[str, Any]) -> tuple[Simulator, dict[str, Any]]:
    """Return the simulator that `env.name` names, and the options for it."""
    options = dict(env)
    name = options.pop("name", None)
    if name not in SIMULATORS:
        raise ConfigError(unknown_name("env.name", str(name), SIMULATORS))
    return SIMULATORS[name], options


def make_env(env: Mapping[str, Any]) -> MakeEnv:
    """Return a function that makes a fresh environment; its options are tried once, now.

    Raises ConfigError when the environment does not know an option or a value.
    """
    simulator, options = find(env)
    try:
        simulator.make(options).close()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"environment {env['name']!r} cannot be made with {options}: {error}") from error
    return lambda: simulator.make(options)


# ---- conveyor -----------------------------------------------------------------------------------------------


def _conveyor(options: Mapping[str, Any]) -> "gym.Env":
    import gymnasium as gym

    from vla_mot.envs import CONVEYOR_ID

    return gym.make(CONVEYOR_ID, **options)


def _conveyor_expert(horizon: int) -> "Controller":
    """Knows the belt's true velocity; plans and executes chunks as long as a policy's."""
    from vla_mot.envs.conveyor import ChunkExpert
    from vla_mot.evaluate.controllers import Act, FunctionController, RawObservation

    def begin(env: "gym.Env", seed: int) -> Act:
        expert, robot = ChunkExpert(horizon, seed=seed), env.unwrapped

        def act(observation: RawObservation) -> Any:
            return robot.robot.command(expert.act(robot.privileged_state(), robot.target_index))

        return act

    return FunctionController(begin)


def _conveyor_demonstrations(
    options: Mapping[str, Any], noise: Mapping[str, Any], seed: int, static_fraction: float
) -> Iterator[Demonstration]:
    """Every scene once per colour; a `static_fraction` of the scenes, spread evenly, stands still."""
    from vla_mot.commands.settings import section
    from vla_mot.envs.conveyor import COLORS, DEMONSTRATION_STEPS, DemonstrationNoise, demonstrate

    try:
        disturbance = section(DemonstrationNoise, "noise", noise)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"noise.{error} See conf/noise/conveyor.yaml.") from error
    options = {**options, "max_steps": max(DEMONSTRATION_STEPS, options.get("max_steps", 0))}
    moving, still = _conveyor(options), _conveyor({**options, "motion": "static"})
    scene = 0
    while True:
        static = int((scene + 1) * static_fraction) > int(scene * static_fraction)
        for color in COLORS:
            steps = list(
                demonstrate(still if static else moving, seed + scene, disturbance, {"target": color})
            )
            yield Demonstration([_conveyor_frame(step) for step in steps], steps[-1].info["verdict"])
        scene += 1


def _conveyor_frame(step: Any) -> Frame:
    cameras = {f"{CAMERA_PREFIX}{name}": picture for name, picture in step.observation["pixels"].items()}
    return {
        **cameras,
        "observation.state": step.observation["agent_pos"],
        "action": step.action,
        "task": step.task,
    }


SIMULATORS: dict[str, Simulator] = {
    "conveyor": Simulator(make=_conveyor, expert=_conveyor_expert, demonstrate=_conveyor_demonstrations),
}

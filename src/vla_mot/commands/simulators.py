"""The robots that can be simulated: how to make the environment, its expert, and its demonstrations.

Adding a simulator: an entry in `SIMULATORS`, and a file in conf/env/.
"""

import importlib.util
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vla_mot.errors import ConfigError, unknown_name
from vla_mot.robots.embodiment import camera_feature

if TYPE_CHECKING:
    import gymnasium as gym

    from vla_mot.evaluate.controllers import Controller
    from vla_mot.evaluate.metaworld.env import MetaworldEnv

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
    from vla_mot.envs.conveyor import COLORS, DEMONSTRATION_STEPS, DemonstrationNoise, demonstrate

    disturbance = _disturbance(DemonstrationNoise, noise, "conveyor")
    options = {**options, "max_steps": max(DEMONSTRATION_STEPS, options.get("max_steps", 0))}
    moving, still = _conveyor(options), _conveyor({**options, "motion": "static"})
    scene = 0
    while True:
        static = int((scene + 1) * static_fraction) > int(scene * static_fraction)
        for color in COLORS:
            steps = list(
                demonstrate(still if static else moving, seed + scene, disturbance, {"target": color})
            )
            yield Demonstration([_frame(step) for step in steps], steps[-1].info["verdict"])
        scene += 1


# ---- Meta-World ---------------------------------------------------------------------------------------------


def _metaworld(options: Mapping[str, Any]) -> "MetaworldEnv":
    from vla_mot.evaluate.metaworld import graphics

    if importlib.util.find_spec("metaworld") is None:
        raise ConfigError(
            'env=metaworld needs Meta-World, which is not installed: pip install "vla-mot[metaworld]".'
        )
    graphics.choose()
    from vla_mot.evaluate.metaworld.env import MetaworldEnv

    return MetaworldEnv(**options)


def _metaworld_expert(horizon: int) -> "Controller":
    """Meta-World's scripted experts, who look at every step; horizon changes nothing."""
    from vla_mot.evaluate.controllers import FunctionController

    return FunctionController(lambda env, seed: lambda observation: env.unwrapped.expert_action())


def _metaworld_demonstrations(
    options: Mapping[str, Any], noise: Mapping[str, Any], seed: int, static_fraction: float
) -> Iterator[Demonstration]:
    """The tasks in turn, each until its expert succeeds, so that as many of every task are kept."""
    if static_fraction:
        raise ConfigError("nothing moves by itself in Meta-World: leave static_fraction at 0.")
    _metaworld(options).close()  # whose options are checked before anything of MuJoCo is imported here
    from vla_mot.evaluate.metaworld.demonstrate import DemonstrationNoise, demonstrate
    from vla_mot.evaluate.metaworld.env import LONGEST

    env = _metaworld({**options, "max_steps": LONGEST})
    disturbance = _disturbance(DemonstrationNoise, noise, "metaworld")
    # The environment picks the task by the seed: those of one task lie as far apart as there are tasks.
    scenes = [itertools.count(seed + place, len(env.tasks)) for place in range(len(env.tasks))]
    with closing(env):
        for scene in itertools.chain.from_iterable(itertools.repeat(scenes)):
            verdict = "running"
            while verdict != "success":
                steps = list(demonstrate(env, next(scene), disturbance))
                verdict = steps[-1].verdict
                yield Demonstration([_frame(step) for step in steps], verdict)


# ---- what they share ----------------------------------------------------------------------------------------


def _disturbance[T](kind: type[T], noise: Mapping[str, Any], name: str) -> T:
    """The noise options of a simulator. Raises ConfigError for an unknown one, or a number out of its range."""
    from vla_mot.commands.settings import section

    try:
        return section(kind, "noise", noise)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"noise.{error} See conf/noise/{name}.yaml.") from error


def _frame(step: Any) -> Frame:
    """A demonstration's step as a dataset records it."""
    cameras = {camera_feature(name): picture for name, picture in step.observation["pixels"].items()}
    return {
        **cameras,
        "observation.state": step.observation["agent_pos"],
        "action": step.action,
        "task": step.task,
    }


SIMULATORS: dict[str, Simulator] = {
    "conveyor": Simulator(make=_conveyor, expert=_conveyor_expert, demonstrate=_conveyor_demonstrations),
    "metaworld": Simulator(make=_metaworld, expert=_metaworld_expert, demonstrate=_metaworld_demonstrations),
}

"""Meta-World as a gymnasium environment for recordings and closed loops, around LeRobot's.

LeRobot's `MetaworldEnv` makes the scene (its camera's place, its seeds, its instruction), so that a policy sees here
what `lerobot-eval --env.type=metaworld` shows it. Three things are ours: several tasks, several cameras, and how
expensively they are drawn.

Importing this module imports MuJoCo: call `graphics.choose()` before.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from lerobot.envs.metaworld import TASK_DESCRIPTIONS
from lerobot.envs.metaworld import MetaworldEnv as LeRobotMetaworld

from vla_mot.errors import unknown_name

LONGEST = 500  # steps after which Meta-World ends every episode
EVALUATED = "corner2"  # the one camera that LeRobot's environment shows
# As LeRobot names the picture of a robot's only camera. The others are `observation.images.<camera>`.
FEATURES = {EVALUATED: "observation.image"}
CAMERAS = ("corner2", "corner", "corner3", "topview", "behindGripper", "gripperPOV")
UPSIDE_DOWN = {EVALUATED, "corner", "corner3"}  # turned by half a turn, the first as LeRobot does
STATE_DIM, ACTION_DIM = 4, 4


class Rendering:
    """How pictures are drawn: the side of shadow maps, samples per pixel, reflections. None: as the model says."""

    def __init__(self, shadows: int | None, samples: int | None, reflections: bool) -> None:
        self.shadows, self.samples, self.reflections = shadows, samples, reflections

    def before(self, model: Any) -> None:
        """Set what is read when the first picture is drawn."""
        if self.shadows is not None:
            model.vis.quality.shadowsize = self.shadows
        if self.samples is not None:
            model.vis.quality.offsamples = self.samples

    def flags(self, scene: Any) -> None:
        """Set what is read at every picture."""
        if self.shadows == 0:
            scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = self.reflections


RENDERINGS = {
    "stock": Rendering(None, None, reflections=True),  # to the last bit what LeRobot shows
    "shadows": Rendering(1024, 0, reflections=True),  # the same to the eye, three times as fast
    "fast": Rendering(0, 0, reflections=False),  # no shadows and no reflections, ten times as fast
}


class MetaworldEnv(gym.Env[dict[str, Any], np.ndarray]):
    """A Sawyer arm that does one of the named tasks, which the seed of an episode picks: `tasks[seed % len(tasks)]`.

    Observation (LeRobot's convention):
        `pixels`: camera → (image_size, image_size, 3) uint8; `corner2` under LeRobot's name `observation.image`.
        `agent_pos`: (4,) float32, the hand's x, y, z in metres and how far the fingers are open, 0 … 1.
    Action:
        (4,) float32 in [-1, 1] at 80 Hz: how far the hand shall move along x, y, z, in centimetres, and the fingers'
        effort, positive to close.
    Verdicts (`info["verdict"]`, with `info["is_success"]`): `running`; `success`, which terminates; `time_out`.
        After a success `step` may go on, until `max_steps`.

    Args:
        tasks: Meta-World's names, such as `drawer-open-v3`.
        cameras: among `CAMERAS`, in the order of `pixels`.
        image_size: side of each picture in pixels; LeRobot's are 480.
        render: a name in `RENDERINGS`.
        max_steps: control steps until `time_out`, at most 500.
        lazy: a picture is drawn when it is looked at, which must be before the next step: pictures cost more than the
            simulation, and who executes chunks looks at few.

    Raises:
        ValueError: an unknown task, camera or rendering; none or the same one twice; a size or number out of its range.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": LeRobotMetaworld.metadata["render_fps"]}  # noqa: RUF012

    def __init__(
        self,
        tasks: Sequence[str] = ("reach-v3",),
        cameras: Sequence[str] = (EVALUATED, "corner", "gripperPOV"),
        image_size: int = 96,
        render: str = "fast",
        max_steps: int = LONGEST,
        lazy: bool = False,
    ) -> None:
        self.tasks = _known("tasks", tasks, tuple(TASK_DESCRIPTIONS))
        self.cameras = _known("cameras", cameras, CAMERAS)
        (rendering,) = _known("render", [render], tuple(RENDERINGS))
        for name, count, most in (("image_size", image_size, 480), ("max_steps", max_steps, LONGEST)):
            if not isinstance(count, Integral) or not 1 <= count <= most:
                raise ValueError(f"{name} of Meta-World must be a whole number in 1 … {most}, got {count!r}.")
        self.render_mode = "rgb_array"
        self._rendering = RENDERINGS[rendering]
        self._image_size, self._max_episode_steps = image_size, max_steps
        self._lazy, self._moment = lazy, 0
        self._made: dict[str, LeRobotMetaworld] = {}
        self._now = self.tasks[0]
        self._raw = np.zeros(0)
        self._steps = 0
        picture = gym.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = gym.spaces.Dict(
            {
                "pixels": gym.spaces.Dict({FEATURES.get(camera, camera): picture for camera in self.cameras}),
                "agent_pos": gym.spaces.Box(-1000.0, 1000.0, (STATE_DIM,), np.float32),
            }
        )
        self.action_space = gym.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)

    # -- instruction and expert --------------------------------------------------------------------------

    @property
    def task_name(self) -> str:
        """Meta-World's name of this episode's task."""
        return self._now

    @property
    def task(self) -> str:
        """The instruction of this episode, LeRobot's description of the task."""
        return TASK_DESCRIPTIONS[self._now]

    @property
    def task_description(self) -> str:
        """The same, by the name that lerobot-eval prefers."""
        return self.task

    def expert_action(self) -> np.ndarray:
        """What Meta-World's scripted expert, who knows where everything is, would do now: (4,) float32."""
        with warnings.catch_warnings():  # of responses beyond what is clipped here
            warnings.filterwarnings("ignore", message="Constant")
            action = self._upstream.expert_policy.get_action(self._raw)
        return np.clip(action, self.action_space.low, self.action_space.high).astype(np.float32)

    # -- gymnasium ---------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode. Without a seed, the next one of the environment's own generator."""
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(2**31)) if seed is None else seed
        self._now, self._steps = self.tasks[drawn % len(self.tasks)], 0
        simulation = self._simulation
        simulation.seed(drawn)
        self._raw, _ = simulation.reset(seed=drawn)
        return self._observation(), {"is_success": False, "verdict": "running"}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One control step."""
        self._raw, reward, _, truncated, info = self._simulation.step(np.asarray(action))
        self._steps += 1
        success = bool(info["success"])
        late = truncated or self._steps >= self._max_episode_steps
        verdict = "success" if success else "time_out" if late else "running"
        told = {"is_success": success, "verdict": verdict, "task": self._now}
        return self._observation(), float(reward), success, bool(late and not success), told

    def render(self) -> np.ndarray:
        """The picture of the first camera."""
        return self._picture(self.cameras[0])

    def close(self) -> None:
        """Free the scenes and what draws them."""
        for made in self._made.values():
            made.close()
        self._made = {}

    # -- LeRobot's environment ---------------------------------------------------------------------------

    @property
    def _upstream(self) -> LeRobotMetaworld:
        if self._now not in self._made:
            made = LeRobotMetaworld(self._now, camera_name=EVALUATED, obs_type="pixels_agent_pos")
            made._ensure_env()
            self._rendering.before(made._env.model)
            renderer = made._env.mujoco_renderer
            renderer.width = renderer.height = self._image_size
            self._made[self._now] = made
        return self._made[self._now]

    @property
    def _simulation(self) -> Any:
        return self._upstream._env

    def _observation(self) -> dict[str, Any]:
        self._moment += 1
        now = self._moment
        draw = {FEATURES.get(camera, camera): partial(self._picture, camera) for camera in self.cameras}
        pictures = _Pictures(draw, lambda: now == self._moment)
        pixels = pictures if self._lazy else dict(pictures)
        return {"pixels": pixels, "agent_pos": self._raw[:STATE_DIM].astype(np.float32)}

    def _picture(self, camera: str) -> np.ndarray:
        renderer = self._simulation.mujoco_renderer
        renderer.camera_id = self._simulation.model.camera(camera).id
        if renderer.viewer is None:
            renderer.render("rgb_array")  # makes the viewer, whose scene has the flags
        # Gymnasium leaves the context of whoever was made last; another environment's textures may be in it.
        renderer.viewer.make_context_current()
        self._rendering.flags(renderer.viewer.scn)
        picture = renderer.render("rgb_array")
        return np.ascontiguousarray(np.flip(picture, (0, 1)) if camera in UPSIDE_DOWN else picture)


class _Pictures(Mapping[str, np.ndarray]):
    """Of one moment, each drawn when it is looked at first. Raises RuntimeError when the moment has passed."""

    def __init__(self, draw: Mapping[str, Callable[[], np.ndarray]], is_now: Callable[[], bool]) -> None:
        self._draw, self._is_now = draw, is_now
        self._drawn: dict[str, np.ndarray] = {}

    def __getitem__(self, camera: str) -> np.ndarray:
        if camera not in self._drawn:
            draw = self._draw[camera]
            if not self._is_now():
                raise RuntimeError("lazy pictures must be looked at before the environment's next step.")
            self._drawn[camera] = draw()
        return self._drawn[camera]

    def __iter__(self) -> Iterator[str]:
        return iter(self._draw)

    def __len__(self) -> int:
        return len(self._draw)


def _known(name: str, chosen: Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """The chosen names. Raises ValueError for an unknown one, none, or one that is there twice."""
    if isinstance(chosen, str) or not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"{name} of Meta-World must be a list of different names, got {chosen!r}.")
    for one in chosen:
        if one not in known:
            raise ValueError(unknown_name(name, str(one), known))
    return tuple(chosen)

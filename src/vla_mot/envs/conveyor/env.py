"""The gymnasium environment `vla_mot/Conveyor-v0`."""

from dataclasses import replace
from numbers import Integral
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from vla_mot.envs.conveyor import scene as geo
from vla_mot.envs.conveyor.render import Renderer
from vla_mot.envs.conveyor.robots import CAMERAS, ROBOTS
from vla_mot.envs.conveyor.world import ConveyorWorld, WorldState

OBS_TYPES = ("pixels_agent_pos", "agent_pos")
MOTIONS = ("dynamic", "static")
RENDER_SIZE = 384  # pixels, side of `render()`'s picture

# A state may pass an action's limits a little: drives settle, and pushed fingers give way.
STATE_MARGIN = np.float32(0.05)


class ConveyorEnv(gym.Env[dict[str, Any], np.ndarray]):
    """A planar gripper has to fetch the named block from a moving belt and put it into the tray.

    Observation (LeRobot's convention):
        `pixels/head`, `pixels/gripper`: (image_size, image_size, 3) uint8; absent if `obs_type="agent_pos"`.
        `agent_pos`: (4,) float32, gripper x, y, aperture in metres, and 1.0 while both fingers feel a block.
    Action:
        (3,) float32, position targets x, y, aperture in metres at 10 Hz; speed and force are limited.
    Robot `fingers`: actions (4,) x, y, left, right, state (5,), camera `overhead`; `hand`: camera `head`. See `robots`.
    Verdicts (`info["verdict"]`, with `info["is_success"]`):
        `running`; `success`: the named block rests in the tray, released; `wrong_object`: the other block was
        taken off the belt; `failure`: the named block left the belt or was dropped outside the tray; these
        three terminate. `time_out`: `max_steps` passed, which truncates.

    Args:
        image_size: side of each camera's picture in pixels.
        motion: `dynamic`, or `static` for the same scenes with the belt at rest.
        target: colour that every episode asks for; None draws it per episode.
        max_steps: control steps until `time_out`; a clean pick takes about 38.
        render_mode: `rgb_array` or None.
        obs_type: `pixels_agent_pos`, or `agent_pos` to skip the cameras.
        robot: `planar`, as above, `fingers` or `hand`.

    Raises:
        ValueError: an unknown `robot`, `motion`, `target`, `obs_type` or `render_mode`; an `image_size` or `max_steps`
            that is no whole number of at least 1.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / geo.CONTROL_DT)}  # noqa: RUF012 (gymnasium's)

    def __init__(
        self,
        image_size: int = 64,
        motion: Literal["dynamic", "static"] = "dynamic",
        target: str | None = None,
        max_steps: int = 50,
        render_mode: str | None = None,
        obs_type: Literal["pixels_agent_pos", "agent_pos"] = "pixels_agent_pos",
        robot: Literal["planar", "fingers", "hand"] = "planar",
    ) -> None:
        _check("robot", robot, tuple(ROBOTS))
        _check("motion", motion, MOTIONS)
        _check("target", target, (None, *geo.COLORS))
        _check("obs_type", obs_type, OBS_TYPES)
        _check("render_mode", render_mode, (None, "rgb_array"))
        for name, count in (("image_size", image_size), ("max_steps", max_steps)):
            if not isinstance(count, Integral) or count < 1:
                raise ValueError(
                    f"{name} of the conveyor environment must be a whole number of at least 1, got {count!r}"
                )
        self.render_mode = render_mode
        self.robot = ROBOTS[robot]
        self.motion = motion
        self._fixed_target = target
        self._max_episode_steps = max_steps  # the name that lerobot-eval asks for
        self._obs_type = obs_type
        self._renderer = Renderer(image_size, self.robot.look)
        self._target = 0 if target is None else geo.COLORS.index(target)
        self._world = ConveyorWorld(geo.sample_scene(np.random.default_rng(0), motion))
        self._steps = 0
        self.action_space = gym.spaces.Box(self.robot.action_low, self.robot.action_high, dtype=np.float32)
        self.observation_space = gym.spaces.Dict(self._observation_spaces(image_size))

    # -- instruction -------------------------------------------------------------------------------------

    @property
    def target(self) -> str:
        """Colour of the block that this episode asks for."""
        return geo.COLORS[self._target]

    @property
    def target_index(self) -> int:
        """Index into `COLORS` of the block that this episode asks for."""
        return self._target

    @property
    def task(self) -> str:
        """The instruction of this episode; the name that LeRobot reads."""
        return geo.instruction(self.target)

    @property
    def task_description(self) -> str:
        """The instruction of this episode; the name that lerobot-eval prefers."""
        return self.task

    @property
    def other_instruction(self) -> str:
        """The instruction that names the other block of this very scene."""
        return geo.instruction(geo.COLORS[1 - self._target])

    # -- gymnasium ---------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode; a seed fixes the scene, whatever is asked of it.

        Args:
            seed: of the scene and, without a fixed target, of the colour asked for.
            options: `target` ("red") asks for that block in this very scene; `belt_velocity` (m/s along x)
                changes only the belt. Other keys belong to whoever wraps this environment.
        """
        super().reset(seed=seed)
        options = options or {}
        chosen = options.get("target", self._fixed_target)
        _check("target", chosen, (None, *geo.COLORS))
        scene = geo.sample_scene(self.np_random, self.motion)
        if "belt_velocity" in options:
            scene = replace(scene, belt_velocity=float(options["belt_velocity"]))
        self._world = ConveyorWorld(scene)
        drawn = int(self.np_random.integers(len(geo.COLORS)))
        self._target = drawn if chosen is None else geo.COLORS.index(chosen)
        self._steps = 0
        return self._observe(), self._info("running")

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Move towards `action` for one control step; the reward is 1 on success.

        Raises ValueError when it has not the dimensions of the robot's actions.
        """
        low, high = self.action_space.low, self.action_space.high
        asked = np.asarray(action, np.float64)
        if asked.shape != low.shape:
            raise ValueError(
                f"an action of the conveyor's robot {self.robot.name!r} has the dimensions "
                f"{', '.join(self.robot.action_names)}; got an array of shape {asked.shape}."
            )
        self._world.step(np.clip(asked, low, high))
        self._steps += 1
        verdict = self._verdict()
        info = self._info(verdict)
        terminated = verdict not in ("running", "time_out")
        return self._observe(), float(info["is_success"]), terminated, verdict == "time_out", info

    def render(self) -> np.ndarray | None:
        """The head camera at `RENDER_SIZE` pixels, (H, W, 3) uint8, if `render_mode="rgb_array"`."""
        if self.render_mode is None:
            return None
        return self._see("head", RENDER_SIZE)

    def privileged_state(self) -> WorldState:
        """What only the simulator knows, for scripted experts."""
        return self._world.state()

    # -- inside ------------------------------------------------------------------------------------------

    def _observation_spaces(self, image_size: int) -> dict[str, gym.spaces.Space[Any]]:
        low = np.append(self.robot.action_low - STATE_MARGIN, np.float32(0.0))
        high = np.append(self.robot.action_high + STATE_MARGIN, np.float32(1.0))
        spaces: dict[str, gym.spaces.Space[Any]] = {"agent_pos": gym.spaces.Box(low, high, dtype=np.float32)}
        if self._obs_type == "pixels_agent_pos":
            picture = gym.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
            spaces["pixels"] = gym.spaces.Dict(dict.fromkeys(self.robot.cameras, picture))
        return spaces

    def _observe(self) -> dict[str, Any]:
        observation: dict[str, Any] = {"agent_pos": self.robot.feel(self._world.state())}
        if self._obs_type == "pixels_agent_pos":
            observation["pixels"] = {camera: self._see(camera) for camera in self.robot.cameras}
        return observation

    def _see(self, camera: str, size: int | None = None) -> np.ndarray:
        return self._renderer.picture(CAMERAS[camera], self._world.state(), self._world.finger_x, size)

    def _info(self, verdict: str) -> dict[str, Any]:
        return {"verdict": verdict, "is_success": verdict == "success"}

    def _verdict(self) -> str:
        state = self._world.state()
        x, y = state.block_xy[self._target]
        on_belt = abs(y - geo.BELT_Y) < geo.BELT_WIDTH / 2
        if state.held is not None and state.held != self._target:
            other_y = state.block_xy[state.held, 1]
            if abs(other_y - geo.BELT_Y) > geo.BELT_WIDTH / 2:
                return "wrong_object"
        if state.held != self._target:
            in_tray = abs(x - geo.TRAY_X) < geo.TRAY_HALF_WIDTH and abs(y - geo.TRAY_Y) < geo.TRAY_HALF_HEIGHT
            if in_tray:
                return "success"
            if not on_belt or abs(x) > geo.BELT_HALF_LENGTH:
                return "failure"
        return "time_out" if self._steps >= self._max_episode_steps else "running"


def _check(name: str, value: str | None, known: tuple[str | None, ...]) -> None:
    if value not in known:
        raise ValueError(
            f"unknown {name} {value!r} of the conveyor environment: expected one of {list(known)}"
        )

"""The conveyor robot as a LeRobot environment: `lerobot-eval --env.type=conveyor`.

LeRobot imports every installed distribution whose name starts with `lerobot_env_`; importing this one registers
the gymnasium environment and its LeRobot configuration.
"""

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from vla_mot.envs import CONVEYOR_ID

_NAMESPACE, _TASK = CONVEYOR_ID.split("/")


@EnvConfig.register_subclass("conveyor")
@dataclass
class ConveyorEnvConfig(EnvConfig):
    """Options of `--env.*`; see `vla_mot.envs.conveyor.ConveyorEnv` for what they mean.

    Actions of robot `planar` are fingertip x, y and aperture in metres at 10 Hz, `observation.state` adds whether a
    block is felt; the cameras are `observation.images.head` and `observation.images.gripper`.
    """

    task: str | None = _TASK
    fps: int = 10
    robot: str = "planar"
    image_size: int = 64
    motion: str = "dynamic"
    target: str | None = None
    max_steps: int = 50
    render_mode: str = "rgb_array"
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Declare the features of the robot. Raises ValueError for an unknown one."""
        # Not above: LeRobot imports this module whatever environment it is asked for.
        from vla_mot.envs.conveyor import ROBOTS

        if self.robot not in ROBOTS:
            raise ValueError(
                f"unknown robot {self.robot!r} of the conveyor: expected one of {', '.join(ROBOTS)}."
            )
        robot = ROBOTS[self.robot]
        self._declare(ACTION, ACTION, PolicyFeature(FeatureType.ACTION, (len(robot.action_names),)))
        self._declare("agent_pos", OBS_STATE, PolicyFeature(FeatureType.STATE, (len(robot.state_names),)))
        picture = PolicyFeature(FeatureType.VISUAL, (self.image_size, self.image_size, 3))
        for camera in robot.cameras:
            self._declare(f"pixels/{camera}", f"{OBS_IMAGES}.{camera}", picture)

    def _declare(self, key: str, name: str, feature: PolicyFeature) -> None:
        self.features.setdefault(key, feature)
        self.features_map.setdefault(key, name)

    @property
    def package_name(self) -> str:
        """The namespace of the gymnasium id, which importing this module has registered."""
        return _NAMESPACE

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of `ConveyorEnv`."""
        return {
            "robot": self.robot,
            "image_size": self.image_size,
            "motion": self.motion,
            "target": self.target,
            "max_steps": self.max_steps,
            "render_mode": self.render_mode,
        }

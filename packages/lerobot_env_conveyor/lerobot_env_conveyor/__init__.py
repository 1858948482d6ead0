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
_CAMERAS = ("head", "gripper")


@EnvConfig.register_subclass("conveyor")
@dataclass
class ConveyorEnvConfig(EnvConfig):
    """Options of `--env.*`; see `vla_mot.envs.conveyor.ConveyorEnv` for what they mean.

    Actions are fingertip x, y and aperture in metres at 10 Hz, `observation.state` adds whether a block is felt;
    the cameras are `observation.images.head` and `observation.images.gripper`.
    """

    task: str | None = _TASK
    fps: int = 10
    image_size: int = 64
    motion: str = "dynamic"
    target: str | None = None
    max_steps: int = 50
    render_mode: str = "rgb_array"
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(
        default_factory=lambda: {
            ACTION: ACTION,
            "agent_pos": OBS_STATE,
            **{f"pixels/{camera}": f"{OBS_IMAGES}.{camera}" for camera in _CAMERAS},
        }
    )

    def __post_init__(self) -> None:
        """Declare the features, whose picture size is an option."""
        picture = (self.image_size, self.image_size, 3)
        self.features.setdefault(ACTION, PolicyFeature(FeatureType.ACTION, (3,)))
        self.features.setdefault("agent_pos", PolicyFeature(FeatureType.STATE, (4,)))
        for camera in _CAMERAS:
            self.features.setdefault(f"pixels/{camera}", PolicyFeature(FeatureType.VISUAL, picture))

    @property
    def package_name(self) -> str:
        """The namespace of the gymnasium id, which importing this module has registered."""
        return _NAMESPACE

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of `ConveyorEnv`."""
        return {
            "image_size": self.image_size,
            "motion": self.motion,
            "target": self.target,
            "max_steps": self.max_steps,
            "render_mode": self.render_mode,
        }

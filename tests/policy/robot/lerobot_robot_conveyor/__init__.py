"""A stranger's plugin: the conveyor as a robot with cables, and a processor step. Importing it registers both."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.processor import ObservationProcessorStep, ProcessorStepRegistry
from lerobot.robots import Robot, RobotConfig

from vla_mot.envs.conveyor import ConveyorEnv


@RobotConfig.register_subclass("conveyor")
@dataclass
class ConveyorConfig(RobotConfig):
    diary: Path | None = None  # gets a line of JSON for every action
    image_size: int = 48


class Conveyor(Robot):
    config_class = ConveyorConfig
    name = "conveyor"
    is_calibrated = True

    def __init__(self, config: ConveyorConfig) -> None:
        super().__init__(config)
        self.config = config
        self._env = ConveyorEnv(image_size=config.image_size, max_steps=10**6)
        self._seen: dict[str, Any] | None = None

    @property
    def observation_features(self) -> dict[str, Any]:
        picture = (self.config.image_size, self.config.image_size, 3)
        state = {f"{name}.pos": float for name in self._env.robot.state_names}
        return state | dict.fromkeys(self._env.robot.cameras, picture)

    @property
    def action_features(self) -> dict[str, Any]:
        return {f"{name}.pos": float for name in self._env.robot.action_names}

    @property
    def is_connected(self) -> bool:
        return self._seen is not None

    def connect(self, calibrate: bool = True) -> None:
        self._seen, _ = self._env.reset(seed=0)

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def get_observation(self) -> dict[str, Any]:
        assert self._seen is not None
        state = dict(zip(self.observation_features, map(float, self._seen["agent_pos"]), strict=False))
        return state | {camera: self._seen["pixels"][camera] for camera in self._env.robot.cameras}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        sent = np.array([action[name] for name in self.action_features], np.float32)
        self._seen, *_ = self._env.step(
            np.clip(sent, self._env.action_space.low, self._env.action_space.high)
        )
        if self.config.diary is not None:
            with self.config.diary.open("a") as diary:
                diary.write(json.dumps(sent.tolist()) + "\n")
        return action

    def disconnect(self) -> None:
        self._seen = None


@ProcessorStepRegistry.register("conveyor_glance")
class GlanceStep(ObservationProcessorStep):
    """Changes nothing, and says once that it saw something."""

    _said = False

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        if not self._said:
            logging.info("conveyor_glance saw %s", ", ".join(sorted(observation)))
            self._said = True
        return observation

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        return features


__all__ = ["Conveyor", "ConveyorConfig", "GlanceStep"]

"""What a LeRobot dataset says about its robot: an embodiment and statistics for a policy trained from scratch."""

from collections.abc import Mapping
from typing import Any

import torch

from vla_mot.errors import ConfigError
from vla_mot.policy.configuration_vla_mot import VlaMotConfig
from vla_mot.robots.actions import ABSOLUTE
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.generic import infer_embodiment
from vla_mot.robots.normalization import Statistics
from vla_mot.robots.statistics_file import lacking, released_statistics

STATE, ACTION = "observation.state", "action"


def dataset_embodiment(config: VlaMotConfig, dataset_meta: Any) -> Embodiment:
    """Infer the embodiment from `observation.state`, `action` and the cameras that the policy is to read.

    dataset_meta: LeRobot's metadata (features, fps, robot type). Raises ConfigError when a feature is missing.
    """
    inputs = config.input_features or {}
    if STATE not in inputs:
        raise ConfigError(
            f"the policy needs a feature {STATE!r}; the dataset has {', '.join(sorted(inputs))}."
        )
    read = (STATE, ACTION, *config.image_features)
    features = {key: spec for key, spec in dataset_meta.features.items() if key in read}
    told = {"features": features, "fps": dataset_meta.fps, "robot_type": dataset_meta.robot_type}
    return infer_embodiment(told)


def dataset_statistics(
    embodiment: Embodiment, dataset_stats: Mapping[str, Mapping[str, Any]], config: VlaMotConfig
) -> Statistics:
    """Turn LeRobot's dataset statistics into the policy's.

    Raises ConfigError in delta mode, whose statistics no LeRobot dataset has, or when a feature is missing.
    """
    if config.action_mode != ABSOLUTE:
        raise ConfigError(
            "a LeRobot dataset has statistics of absolute actions only, and action_mode=delta needs those of delta "
            "chunks. Train from scratch with --policy.action_mode=abs, or with `vla-mot posttrain`, or start from a "
            "delta checkpoint with --policy.path."
        )
    if absent := lacking(embodiment, dataset_stats):
        raise ConfigError(
            f"the dataset has no statistics of {', '.join(absent)}; it has {', '.join(dataset_stats)}."
        )
    plain = {
        field.key: {name: torch.as_tensor(value).flatten().tolist() for name, value in numbers.items()}
        for field in (*embodiment.state, *embodiment.action)
        for numbers in [dataset_stats[field.key]]
    }
    return released_statistics(embodiment, plain, config.action_mode, config.chunk_size)

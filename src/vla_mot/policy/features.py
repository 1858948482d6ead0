"""What a LeRobot dataset says about its robot: an embodiment and statistics for a policy trained from scratch.

A dataset names neither units nor gripper dimensions, so an inferred embodiment has no unit and no delta dimension.
Legend: `D` dims of one feature.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vla_mot.errors import ConfigError
from vla_mot.policy.configuration_vla_mot import VlaMotConfig
from vla_mot.robots.actions import ABSOLUTE
from vla_mot.robots.embodiment import Embodiment, Field
from vla_mot.robots.normalization import FeatureStatistics, Statistics

log = logging.getLogger(__name__)

STATE, ACTION = "observation.state", "action"
_UNKNOWN_UNIT = "unknown"


def infer_embodiment(config: VlaMotConfig, dataset_meta: Any) -> Embodiment:
    """Read the embodiment off a dataset: `observation.state`, `action`, colour cameras in the dataset's order.

    dataset_meta: LeRobot's metadata (features, fps, robot type). Raises ConfigError when a feature is missing.
    """
    inputs = config.input_features or {}
    if STATE not in inputs:
        raise ConfigError(
            f"the policy needs a feature {STATE!r}; the dataset has {', '.join(sorted(inputs))}."
        )
    cameras = [key for key, feature in config.image_features.items() if feature.shape[0] == 3]
    skipped = sorted(set(config.image_features) - set(cameras))
    if skipped:
        log.warning("not read, since they are no colour pictures: %s", ", ".join(skipped))
    return Embodiment(
        name=str(dataset_meta.robot_type or "unnamed").lower(),
        fps=float(dataset_meta.fps),
        state=(_field(STATE, dataset_meta.features[STATE]),),
        action=(_field(ACTION, dataset_meta.features[ACTION]),),
        cameras=tuple(cameras),
    )


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
    return Statistics(
        embodiment=embodiment.name,
        action_mode=config.action_mode,
        chunk_size=config.chunk_size,
        state=_joined(embodiment.state, dataset_stats),
        action=_joined(embodiment.action, dataset_stats),
    )


def _field(key: str, feature: Mapping[str, Any]) -> Field:
    width = int(feature["shape"][0])
    names = feature.get("names")
    if isinstance(names, Mapping):  # older datasets: {"motors": [...]}
        names = [name for group in names.values() for name in group]
    if not names or len(names) != width:
        names = [str(dim) for dim in range(width)]
    return Field(key, tuple(map(str, names)), (_UNKNOWN_UNIT,) * width)


def _joined(fields: tuple[Field, ...], stats: Mapping[str, Mapping[str, Any]]) -> FeatureStatistics:
    missing = [field.key for field in fields if field.key not in stats]
    if missing:
        raise ConfigError(
            f"the dataset has no statistics of {', '.join(missing)}; it has {', '.join(stats)}."
        )

    def joined(number: str) -> Tensor:
        parts = [torch.as_tensor(stats[field.key][number], dtype=torch.float32).flatten() for field in fields]
        return torch.cat(parts)

    count = torch.as_tensor(stats[fields[0].key]["count"]).flatten()[0]
    return FeatureStatistics(
        mean=joined("mean"), std=joined("std"), min=joined("min"), max=joined("max"), count=int(count)
    )

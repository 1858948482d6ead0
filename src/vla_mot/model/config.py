"""What defines a model. Plain values, so that it is written to `config.json` and read back exactly."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from vla_mot.errors import ConfigError, unknown_name
from vla_mot.flow.matching import NoiseLevelConfig
from vla_mot.nn.expert import ExpertConfig


@dataclass(frozen=True)
class ModelConfig:
    """A model's architecture and the conventions that its weights were trained with.

    backbone, foresight: `{"type": family, …}`, see `vla_mot.backbones` and `vla_mot.foresight`.
    generation, action: widths of these experts; layers, heads and head dim follow the backbone.
    num_views: camera slots V. view_size: (height, width) in pixels after `resize_with_pad`.
    offset_frames: m; history is frame t − m and foresight frame t + m, in frames of the embodiment.
    foresight_stride: latent rows and columns per generation token.
    chunk_size: L. max_state_dim, max_action_dim: padded widths S and A.
    min_period, max_period: of the noise-level embedding.
    mask_padding: True keeps padded action dimensions at zero and hides episode-padded steps. The released
        checkpoints were trained with noise in padded dimensions and padded steps in view: False.
    """

    backbone: Mapping[str, Any]
    foresight: Mapping[str, Any]
    generation: ExpertConfig
    action: ExpertConfig
    num_views: int = 3
    view_size: tuple[int, int] = (224, 224)
    offset_frames: int = 15
    foresight_stride: int = 8
    chunk_size: int = 50
    max_state_dim: int = 32
    max_action_dim: int = 32
    min_period: float = 4e-3
    max_period: float = 4.0
    mask_padding: bool = True
    noise_level: NoiseLevelConfig = field(default_factory=NoiseLevelConfig)

    def __post_init__(self) -> None:
        for name in ("num_views", "offset_frames", "foresight_stride", "chunk_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} must be at least 1, got {getattr(self, name)}.")
        if self.action.hidden_size % 2:
            raise ConfigError(f"model.action.hidden_size must be even, got {self.action.hidden_size}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dicts and lists."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> "ModelConfig":
        """The inverse of `to_dict`. Raises ConfigError for an unknown or missing key."""
        known = [f.name for f in fields(cls)]
        for key in spec:
            if key not in known:
                raise ConfigError(unknown_name("model option", key, known))
        for key in ("backbone", "foresight", "generation", "action"):
            if key not in spec:
                raise ConfigError(
                    f"the model's configuration lacks {key!r}; choose one under conf/{key}/ or conf/model/."
                )
        given = dict(spec)
        given["generation"] = _section(ExpertConfig, "model.generation", spec["generation"])
        given["action"] = _section(ExpertConfig, "model.action", spec["action"])
        if "noise_level" in spec:
            given["noise_level"] = _section(NoiseLevelConfig, "model.noise_level", spec["noise_level"])
        if "view_size" in spec:
            given["view_size"] = tuple(spec["view_size"])
        return cls(**given)


def _section(cls: Any, name: str, spec: Mapping[str, Any]) -> Any:
    known = [f.name for f in fields(cls)]
    for key in spec:
        if key not in known:
            raise ConfigError(unknown_name(f"{name} option", key, known))
    for f in fields(cls):
        if f.name not in spec and f.default is MISSING:
            raise ConfigError(f"{name} lacks {f.name!r}, got only {sorted(spec)}; set it in conf/model/.")
    return cls(**spec)

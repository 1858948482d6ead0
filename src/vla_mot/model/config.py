"""What defines a model. Plain values, so that it is written to `config.json` and read back exactly."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vla_mot.errors import ConfigError
from vla_mot.flow.matching import NoiseLevelConfig
from vla_mot.nn.expert import ExpertConfig
from vla_mot.options import at_least, section, within
from vla_mot.robots.embodiment import Embodiment

MAX_SIDE = 8192
"""Pixels: no camera's picture is larger."""


@dataclass(frozen=True)
class ModelConfig:
    """A model's architecture and the conventions that its weights were trained with.

    backbone, foresight: `{"type": family, …}`, see `vla_mot.backbones` and `vla_mot.foresight`.
    generation, action: widths of these experts; layers, heads and head dim follow the backbone. Without a generation
        expert (None, and then `foresight` is None too) the model sees no history and foresees nothing: the segment is
        absent from the sequence, from the stack and from the losses.
    num_views: camera slots V. view_size: (height, width) in pixels after `resize_with_pad`.
    offset_frames: m; history is frame t − m and foresight frame t + m, in frames of the embodiment.
    offset_seconds: m in seconds instead, so that robots of other rates count other frames; None: offset_frames counts.
    history: what the generation expert sees beside the present: frame t − m (`past`), or frame t once more (`present`),
        in training and in acting alike, to measure what history is worth.
    foresight_stride: latent rows and columns per generation token.
    chunk_size: L. max_state_dim, max_action_dim: padded widths S and A.
    min_period, max_period: of the noise-level embedding.
    mask_padding: True keeps padded action dimensions at zero and hides episode-padded steps. The released
        checkpoints were trained with noise in padded dimensions and padded steps in view: False.
    positions: which generation tokens count when sampling, in the positions of those behind them. "real": those of
        present cameras, as in training. "released": all, as the released 3B policy samples (it trains like "real").
    action_loss: what the action loss averages over. "real": real steps of real dimensions. "padded": every step of
        every dimension, as the released policies were trained; samples without any action label never count.
    """

    backbone: Mapping[str, Any]
    foresight: Mapping[str, Any] | None
    generation: ExpertConfig | None
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
    positions: Literal["real", "released"] = "real"
    action_loss: Literal["real", "padded"] = "real"
    noise_level: NoiseLevelConfig = field(default_factory=NoiseLevelConfig)
    offset_seconds: float | None = None
    history: Literal["past", "present"] = "past"

    def __post_init__(self) -> None:
        counts = (
            "num_views",
            "offset_frames",
            "foresight_stride",
            "chunk_size",
            "max_state_dim",
            "max_action_dim",
        )
        at_least(1, {f"model.{name}": getattr(self, name) for name in counts})
        if (self.generation is None) != (self.foresight is None):
            raise ConfigError(
                "the generation expert reads and foresees what the foresight tokenizer encodes, so a model has both or "
                f"neither: generation is {self.generation}, foresight is {self.foresight}. Set model.generation=null "
                "and foresight=none, or leave both."
            )
        experts = {"generation": self.generation, "action": self.action}
        for name, expert in ((name, expert) for name, expert in experts.items() if expert is not None):
            at_least(1, {f"model.{name}.{key}": value for key, value in asdict(expert).items()})
        within(1, MAX_SIDE, {f"model.view_size[{axis}]": side for axis, side in enumerate(self.view_size)})
        within(1e-9, 1e9, {"model.min_period": self.min_period})
        if self.offset_seconds is not None:
            within(1e-3, 1e6, {"model.offset_seconds": self.offset_seconds})
        within(self.min_period, 1e9, {"model.max_period": self.max_period})
        if self.mask_padding and self.action_loss == "padded":
            raise ConfigError(
                "model.action_loss=padded asks for the noise in padded places, which model.mask_padding=true hides; "
                "set model.mask_padding=false (as released) or model.action_loss=real."
            )
        if self.action.hidden_size % 2:
            raise ConfigError(f"model.action.hidden_size must be even, got {self.action.hidden_size}.")

    def offset(self, embodiment: Embodiment) -> int:
        """m in frames of a robot. Raises ConfigError when the seconds are no whole number of its frames."""
        if self.offset_seconds is None:
            return self.offset_frames
        return max(1, embodiment.frames(seconds=self.offset_seconds))

    def history_steps(self, embodiment: Embodiment) -> int:
        """How many control steps before the present one the other frame is that acting reads; 0: it reads none."""
        reads = self.generation is not None and self.history == "past"
        return self.offset(embodiment) if reads else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dicts and lists."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> "ModelConfig":
        """The inverse of `to_dict`. Raises ConfigError for a key that is unknown, missing, or of a wrong type."""
        return section(cls, "model", spec)

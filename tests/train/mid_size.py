"""A model between the tiny one and a real one: wide enough that memory is products and not bookkeeping."""

from dataclasses import replace
from typing import Any

import torch
from tests.model.tiny import backbone_options, tiny_config

from vla_mot.batch import Batch
from vla_mot.model.config import ModelConfig
from vla_mot.model.model import VlaMotModel
from vla_mot.nn.expert import ExpertConfig
from vla_mot.train.planned import stand_in


def mid_config(family: str = "qwen3_vl", **changes: Any) -> ModelConfig:
    """Four layers of widths 192, 128 and 128; some 3 million weights, some 100 tokens."""
    shape = {"hidden_size": 192, "intermediate_size": 512, "num_layers": 4, "num_heads": 6, "num_kv_heads": 2}
    vision = backbone_options(family)["vision"] | {"hidden_size": 96, "intermediate_size": 256}
    own = {"head_dim": 32, "mrope_sections": [6, 5, 5]} if family == "qwen3_vl" else {}
    return tiny_config(
        backbone=backbone_options(family, image_size=[64, 64], vision=vision, **shape, **own),
        foresight={"type": "dct", "image_size": [64, 64]},
        generation=ExpertConfig(128, 320),
        action=ExpertConfig(128, 320),
        view_size=(64, 64),
        chunk_size=12,
        **changes,
    )


def whole_batch(model: VlaMotModel, size: int, latents: torch.dtype | None = None) -> Batch:
    """Zeros, in which nothing is masked."""
    batch = stand_in(model, size, "meta", latents)
    real = batch._map(lambda t: torch.full(t.shape, t.dtype is torch.bool, dtype=t.dtype))
    return replace(real, index=torch.arange(size))

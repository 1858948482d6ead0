"""Models with random weights, from tiny to 3B. Written out in code, so that neither Hydra nor its files are needed.

`mid` and `3b` have the full sequence: 246 understanding, 96 generation, 1 state and 50 action tokens.
"""

from dataclasses import replace
from typing import Any

import torch

from vla_mot.batch import Batch
from vla_mot.errors import ConfigError, unknown_name
from vla_mot.model.config import ModelConfig
from vla_mot.model.model import VlaMotModel
from vla_mot.nn.expert import ExpertConfig

_BYTES = {
    "tokenizer": "byte",
    "pad_token_id": 256,
    "vision_start_token_id": 257,
    "vision_end_token_id": 258,
}
"""Instead of Qwen's vocabulary, which is a package of its own; the text is as long, and the embedding as large."""

_TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "mrope_sections": [4, 2, 2],
    "vocab_size": 260,
    "text_length": 24,
    "image_size": [32, 32],
    "vision": {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 8,
        "num_position_embeddings": 16,
        "deepstack_layers": [0],
    },
}
_MID = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_layers": 8,
    "num_heads": 8,
    "num_kv_heads": 4,
    "head_dim": 64,
    "mrope_sections": [12, 10, 10],
    "vocab_size": 260,
    "vision": {
        "depth": 4,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_heads": 4,
        "deepstack_layers": [1],
    },
}

SIZES = {
    "tiny": ModelConfig(
        backbone={"type": "qwen3_vl", **_BYTES, **_TINY},
        foresight={"type": "dct", "image_size": [32, 32]},
        generation=ExpertConfig(32, 64),
        action=ExpertConfig(32, 64),
        view_size=(32, 32),
        foresight_stride=2,
        chunk_size=6,
        max_state_dim=8,
        max_action_dim=8,
    ),
    "mid": ModelConfig(
        backbone={"type": "qwen3_vl", **_BYTES, **_MID},
        foresight={"type": "dct", "image_size": [256, 256]},
        generation=ExpertConfig(256, 768),
        action=ExpertConfig(256, 768),
    ),
    # conf/model/a1_3b.yaml, whose other numbers are the defaults; the autoencoder as the released policies ran it.
    "3b": ModelConfig(
        backbone={"type": "qwen3_vl", **_BYTES},
        foresight={"type": "cosmos", "dtype": "bfloat16"},
        generation=ExpertConfig(1024, 3072),
        action=ExpertConfig(1024, 3072),
    ),
}


def build(size: str, device: str, foresight: str = "") -> VlaMotModel:
    """A model of that size on the device, the same weights every time. foresight: `dct` in place of the size's.

    Raises ConfigError for an unknown size.
    """
    if size not in SIZES:
        raise ConfigError(unknown_name("size", size, SIZES))
    config = SIZES[size]
    if foresight:
        pixels = config.foresight.get("image_size", [256, 256])
        config = replace(config, foresight={"type": foresight, "image_size": pixels})
    torch.manual_seed(0)
    with torch.device(device):
        return VlaMotModel(config).train()


def describe(model: VlaMotModel, batch: Batch) -> str:
    """Weights, tokens and batch, in words."""
    seen, config = batch.observation, model.config
    understanding: Any = model.understanding
    told = understanding.positions(seen.view_mask, seen.token_mask).shape[2]
    foreseen = seen.view_mask.shape[1] * model.generation.tokens_per_view
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return (
        f"{weights / 1e6:,.1f} M trained weights, {told} + {foreseen} + 1 + {config.chunk_size} tokens, "
        f"batch {batch.batch_size}"
    )

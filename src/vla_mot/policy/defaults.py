"""The model that `lerobot-train --policy.type=vla_mot` trains from scratch when nothing else is asked for.

About 0.5 million parameters over 64×64 pictures, with the byte tokenizer and the weightless foresight tokenizer:
it needs no download and trains on a CPU. Larger models come from a checkpoint (`--policy.path`) or through
`--policy.model`, whose entries replace these.
"""

from typing import Any

_SIDE = [64, 64]


def default_model() -> dict[str, Any]:
    """Options of `vla_mot.model.config.ModelConfig`; what is not named here keeps that class's default."""
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_heads": 4,
        "patch_size": 8,
        "num_position_embeddings": 64,
        "deepstack_layers": [],
    }
    backbone = {
        "type": "qwen3_vl",
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "vocab_size": 259,
        "rope_base": 10000.0,
        "mrope_sections": [4, 2, 2],
        "vision": vision,
        "image_size": _SIDE,
        "text_length": 48,
        "tokenizer": "byte",
        "pad_token_id": 256,
        "vision_start_token_id": 257,
        "vision_end_token_id": 258,
    }
    return {
        "backbone": backbone,
        "foresight": {"type": "dct", "image_size": _SIDE},
        "generation": {"hidden_size": 64, "intermediate_size": 192},
        "action": {"hidden_size": 64, "intermediate_size": 192},
        "view_size": _SIDE,
        "foresight_stride": 4,
    }

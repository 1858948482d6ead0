"""The model that `lerobot-train --policy.type=vla_mot` trains from scratch when nothing else is asked for.

The experts of `conf/model/tiny.yaml`, widened for robots and instructions of any kind: about 0.6 million weights
over 64×64 pictures, no download, trains on a CPU. (Hydra's files stop at the commands, so it is said again here; a
test holds the two together.) Larger models come from a checkpoint (`--policy.path`) or through `--policy.model`,
whose entries replace these.
"""

from typing import Any


def default_model() -> dict[str, Any]:
    """Options of `vla_mot.model.config.ModelConfig`; what is not named here keeps that class's default."""
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 4,
        "patch_size": 16,
        "merge_size": 1,
        "num_position_embeddings": 16,
        "deepstack_layers": [],
    }
    backbone = {
        "type": "qwen3_vl",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "rope_base": 10000.0,
        "mrope_sections": [4, 2, 2],
        "vocab_size": 260,
        "tokenizer": "byte",
        "pad_token_id": 256,
        "vision_start_token_id": 257,
        "vision_end_token_id": 258,
        "text_length": 48,
        "image_size": [64, 64],
        "vision": vision,
    }
    return {
        "backbone": backbone,
        "foresight": {"type": "dct", "image_size": [64, 64], "block": 8, "coefficients": [8, 4, 4]},
        "generation": {"hidden_size": 64, "intermediate_size": 128},
        "action": {"hidden_size": 64, "intermediate_size": 128},
        "view_size": [64, 64],
        "foresight_stride": 2,
    }

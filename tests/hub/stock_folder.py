"""A folder that transformers wrote: a random Qwen3-VL of the shape that backbone options describe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration


def stock_folder(config: Mapping[str, Any], folder: Path) -> Path:
    """Save it under `folder`, and return that."""
    vision = config["vision"]
    torch.manual_seed(3)
    text = {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "num_hidden_layers": config["num_layers"],
        "num_attention_heads": config["num_heads"],
        "num_key_value_heads": config["num_kv_heads"],
        "head_dim": config["head_dim"],
    }
    tower = {
        "depth": vision["depth"],
        "hidden_size": vision["hidden_size"],
        "intermediate_size": vision["intermediate_size"],
        "num_heads": vision["num_heads"],
        "patch_size": vision["patch_size"],
        "spatial_merge_size": vision.get("merge_size", 2),
        "temporal_patch_size": vision.get("temporal_patch_size", 2),
        "out_hidden_size": config["hidden_size"],
        "num_position_embeddings": vision["num_position_embeddings"],
        "deepstack_visual_indexes": list(vision.get("deepstack_layers", [])),
    }
    model = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text, vision_config=tower, tie_word_embeddings=True)
    )
    model.save_pretrained(folder)
    return folder

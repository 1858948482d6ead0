"""A folder that transformers wrote: a random Qwen3-VL or InternVL3 of the shape that backbone options describe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedModel,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)


def stock_folder(config: Mapping[str, Any], folder: Path) -> Path:
    """Save it under `folder`, and return that."""
    torch.manual_seed(3)
    model = _qwen(config) if config["type"] == "qwen3_vl" else _intern(config)
    model.save_pretrained(folder)
    return folder


def _text(config: Mapping[str, Any], **rope: Any) -> dict[str, Any]:
    return {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "num_hidden_layers": config["num_layers"],
        "num_attention_heads": config["num_heads"],
        "num_key_value_heads": config["num_kv_heads"],
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_parameters": {"rope_type": "default", "rope_theta": config["rope_base"], **rope},
    }


def _qwen(config: Mapping[str, Any]) -> PreTrainedModel:
    vision = config["vision"]
    text = _text(config, mrope_section=list(config["mrope_sections"])) | {"head_dim": config["head_dim"]}
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
    edges = {name: config[name] for name in ("vision_start_token_id", "vision_end_token_id")}
    whole = Qwen3VLConfig(text_config=text, vision_config=tower, tie_word_embeddings=True, **edges)
    return Qwen3VLForConditionalGeneration(whole)


def _intern(config: Mapping[str, Any]) -> PreTrainedModel:
    vision = config["vision"]
    tower = {
        "num_hidden_layers": vision["depth"],
        "hidden_size": vision["hidden_size"],
        "intermediate_size": vision["intermediate_size"],
        "num_attention_heads": vision["num_heads"],
        "patch_size": [vision["patch_size"]] * 2,
        "image_size": list(config["image_size"]),
        "attention_bias": vision.get("attention_bias", True),
    }
    whole = InternVLConfig(
        text_config={"model_type": "qwen2", **_text(config)},
        vision_config=tower,
        downsample_ratio=config.get("downsample_ratio", 0.5),
        tie_word_embeddings=False,
        image_token_id=config["vocab_size"] - 1,
    )
    return InternVLForConditionalGeneration(whole)

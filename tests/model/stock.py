"""Tiny Hugging Face models of both families, of the sizes in `tests.model.tiny`, with random weights."""

from typing import Any

import torch
from tests.model.tiny import IMAGE_END, IMAGE_START, backbone_options
from tests.nn.small import redraw
from torch import Tensor
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from vla_mot.backbones.internvl3 import InternVL3Expert
from vla_mot.backbones.qwen3_vl import Qwen3VLExpert
from vla_mot.batch import Observation

IMAGE = 259
# Ours, as the stock models are: they see only backwards, and Qwen3-VL adds DeepStack features.
AS_STOCK: dict[str, dict[str, Any]] = {
    "qwen3_vl": backbone_options("qwen3_vl", causal=True, deepstack=True),
    "internvl3": backbone_options("internvl3", causal=True),
}
AS_STOCK["qwen3_vl"] |= {"num_layers": 3}
AS_STOCK["qwen3_vl"]["vision"]["deepstack_layers"] = [0, 1]


def stock_model(family: str) -> Any:
    """The stock model with the sizes of `AS_STOCK`."""
    build = {"qwen3_vl": _qwen3_vl, "internvl3": _internvl3}[family]
    model = build(AS_STOCK[family]).eval()
    redraw(model)
    return model


def _text(options: dict[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": options["vocab_size"],
        "hidden_size": options["hidden_size"],
        "intermediate_size": options["intermediate_size"],
        "num_hidden_layers": options["num_layers"],
        "num_attention_heads": options["num_heads"],
        "num_key_value_heads": options["num_kv_heads"],
    }


def _qwen3_vl(options: dict[str, Any]) -> Qwen3VLForConditionalGeneration:
    vision = dict(options["vision"])
    vision["deepstack_visual_indexes"] = vision.pop("deepstack_layers")
    rope = {"rope_type": "default", "rope_theta": options["rope_base"]}
    rope["mrope_section"] = options["mrope_sections"]
    config = Qwen3VLConfig(
        text_config={**_text(options), "head_dim": options["head_dim"], "rope_parameters": rope},
        vision_config={**vision, "out_hidden_size": options["hidden_size"]},
        image_token_id=IMAGE,
        vision_start_token_id=IMAGE_START,
        vision_end_token_id=IMAGE_END,
        tie_word_embeddings=True,
    )
    return Qwen3VLForConditionalGeneration(config)


def _internvl3(options: dict[str, Any]) -> InternVLForConditionalGeneration:
    vision, patch = options["vision"], options["vision"]["patch_size"]
    rope = {"rope_type": "default", "rope_theta": options["rope_base"]}
    config = InternVLConfig(
        text_config={**_text(options), "model_type": "qwen2", "rope_parameters": rope},
        vision_config={
            "hidden_size": vision["hidden_size"],
            "intermediate_size": vision["intermediate_size"],
            "num_hidden_layers": vision["depth"],
            "num_attention_heads": vision["num_heads"],
            "attention_bias": True,
            "image_size": options["image_size"],
            "patch_size": [patch, patch],
        },
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    return InternVLForConditionalGeneration(config)


def stock_states(stock: Any, ours: Any, observation: Observation, positions: Tensor) -> Tensor:
    """Final states `(B, U, D)` of the stock model's own forward, from token ids and pixels."""
    images, views = observation.images[:, :, 1].float() / 255, observation.view_mask.shape[1]
    framed = torch.tensor([IMAGE_START, *[IMAGE] * 4, IMAGE_END]).repeat(views)
    ids = torch.cat((framed.expand(len(images), -1), observation.token_ids), dim=1)
    attention = torch.cat((observation.view_mask.repeat_interleave(6, 1), observation.token_mask), dim=1)
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": attention.long(), "use_cache": False}
    if isinstance(ours, Qwen3VLExpert):
        rows, cols = ours.config.grid
        given["pixel_values"] = ours.patchify(images).flatten(0, 1)
        given["image_grid_thw"] = torch.tensor([[1, rows, cols]] * images[:, :, 0, 0, 0].numel())
        given["position_ids"] = positions
    else:
        assert isinstance(ours, InternVL3Expert)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        given["pixel_values"] = (images.flatten(0, 1) - mean[:, None, None]) / std[:, None, None]
        given["position_ids"] = positions[0]
    return stock.model(**given).last_hidden_state

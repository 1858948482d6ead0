"""Our 2B model with the released weights computes the released numbers (`a1_2b_tiny/README.txt`, `FACTS.md` §12).

Reached in float32 on a CPU, absolute: latents 1.1e-5, embeddings 7e-6, expert outputs, velocities and foresight 1.5e-5,
sampled actions 4e-6, squared errors 5e-5, losses 2e-6; gradient norms 5e-6 relative. Positions and mask are exact. The
bounds leave a factor of two to five for other CPUs.

In bfloat16 (weights cast, or autocast over float32 weights), root mean square relative to float32: velocities and
foresight 1.2 %, actions sampled in ten steps 0.5 %, losses 0.1 %, the gradient as one vector 2.1 %.
"""

import json
from pathlib import Path

import pytest
import torch
from tests.goldens.golden import HEADS, Golden, ReleasedMaths, close, cosmos, load

from vla_mot.model.config import ModelConfig
from vla_mot.nn.expert import ExpertConfig

TEXT = 8
UND, MOT = r"model\.internvl_with_expert\.und_expert\.", r"model\.internvl_with_expert\."
NAMES = [
    (rf"{UND}lm_head\.weight", "understanding.lm_head.weight"),
    (rf"{UND}model\.language_model\.embed_tokens\.weight", "understanding.embed_tokens.weight"),
    (rf"{UND}model\.(vision_tower|multi_modal_projector)\.(.+)", r"understanding.\1.\2"),
    (rf"{UND}model\.language_model\.layers\.(\d+)\.(.+)", r"stack.layers.\1.experts.understanding.\2"),
    (rf"{UND}model\.language_model\.norm\.(.+)", r"stack.norms.understanding.\1"),
    (rf"{MOT}gen_expert\.model\.layers\.(\d+)\.(.+)", r"stack.layers.\1.experts.generation.\2"),
    (rf"{MOT}gen_expert\.model\.norm\.(.+)", r"stack.norms.generation.\1"),
    (rf"{MOT}act_expert\.model\.layers\.(\d+)\.(.+)", r"stack.layers.\1.experts.action.\2"),
    (rf"{MOT}act_expert\.model\.norm\.(.+)", r"stack.norms.action.\1"),
    *HEADS,
]


def config(sizes: dict) -> ModelConfig:
    dims, policy, vision = sizes["dims"], sizes["policy_cfg"], sizes["dims"]["vision"]
    backbone = {
        "type": "internvl3",
        **dims["und"],
        "num_layers": dims["num_hidden_layers"],
        "num_heads": dims["num_attention_heads"],
        "num_kv_heads": dims["num_key_value_heads"],
        "vocab_size": dims["vocab_size"],
        "pad_token_id": dims["pad_token_id"],
        "vision": {
            "depth": vision["num_hidden_layers"],
            "hidden_size": vision["hidden_size"],
            "intermediate_size": vision["intermediate_size"],
            "num_heads": vision["num_attention_heads"],
            "patch_size": vision["patch_size"][0],
            "attention_bias": False,
        },
        "image_size": vision["image_size"],
        "rope_base": 1e4,
        "scale_text": True,
        "image_start_token_id": None,
        "image_end_token_id": None,
        "text_length": TEXT,
        "tokenizer": "byte",
    }
    return ModelConfig(
        backbone=backbone,
        foresight=cosmos(sizes["cosmos"]),
        generation=ExpertConfig(**dims["expert"]),
        action=ExpertConfig(**dims["expert"]),
        view_size=(56, 56),
        chunk_size=policy["chunk_size"],
        max_state_dim=policy["max_state_dim"],
        max_action_dim=policy["max_action_dim"],
        mask_padding=False,
    )


@pytest.fixture(scope="module")
def golden(goldens: Path) -> Golden:
    folder = goldens / "a1_2b_tiny"
    sizes = json.loads((folder / "tiny_dims.json").read_text())
    blocks, text = ("und", "gen", "act"), ("lang_tokens", "lang_masks", TEXT)
    return load(folder, config(sizes), blocks, NAMES, text)


class TestReleased2B(ReleasedMaths):
    """What both released types share, with this fixture's `golden`."""


@torch.no_grad()
def test_predicted_latents_in_training(golden: Golden) -> None:
    _, latents = golden.model._joint(golden.batch, *golden.noise)
    present = golden.given["img_masks"]
    close(latents[..., ::3, ::3][present], golden.out["train.pred_gen_features_stride3"][present])
    future = golden.model.encode_frames(golden.batch.future.unsqueeze(2)).squeeze(2)[..., ::3, ::3]
    close(future[present], golden.out["train.future_cosmos_latents_stride3"][present])

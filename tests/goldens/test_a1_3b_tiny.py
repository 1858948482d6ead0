"""Our 3B model with the released weights computes the released numbers (`a1_3b_tiny/README.txt`, `FACTS.md` §12).

Reached in float32 on a CPU, absolute: latents 1.3e-5, embeddings 7e-6, expert outputs 1.5e-5, velocities and foresight
1.5e-5, sampled actions 6e-6 (of the sample with an absent camera too: `positions="released"`), squared errors 3e-5,
losses 1e-6, pictures 5e-5; gradient norms 2e-6 relative. Positions, patches and mask are exact. The bounds leave a
factor of two to five for other CPUs.

In bfloat16 (weights cast, or autocast over float32 weights), root mean square relative to float32: velocities and
foresight 1.2 %, actions sampled in ten steps 0.5 %, losses 0.1 %, the gradient as one vector 1.7 %.
"""

import json
from pathlib import Path

import pytest
import torch
from tests.goldens.golden import HEADS, Golden, ReleasedMaths, close, cosmos, load

from vla_mot.model.config import ModelConfig
from vla_mot.nn.expert import ExpertConfig

TEXT = 10
UND, MOT = r"model\.qwen3_vl_with_expert\.und_expert\.", r"model\.qwen3_vl_with_expert\."
NAMES = [
    (rf"{UND}lm_head\.weight", "understanding.embed_tokens.weight"),
    (rf"{UND}model\.language_model\.embed_tokens\.weight", "understanding.embed_tokens.weight"),
    (rf"{UND}model\.visual\.(.+)", r"understanding.visual.\1"),
    (rf"{UND}model\.language_model\.layers\.(\d+)\.(.+)", r"stack.layers.\1.experts.understanding.\2"),
    (rf"{UND}model\.language_model\.norm\.(.+)", r"stack.norms.understanding.\1"),
    (rf"{MOT}gen_expert\.layers\.(\d+)\.(.+)", r"stack.layers.\1.experts.generation.\2"),
    (rf"{MOT}gen_expert\.norm\.(.+)", r"stack.norms.generation.\1"),
    (rf"{MOT}act_expert\.layers\.(\d+)\.(.+)", r"stack.layers.\1.experts.action.\2"),
    (rf"{MOT}act_expert\.norm\.(.+)", r"stack.norms.action.\1"),
    *HEADS,
]


def config(sizes: dict) -> ModelConfig:
    dims, policy = sizes["dims"], sizes["policy_cfg"]
    vision = dims["vision"]
    keys = ("depth", "hidden_size", "intermediate_size", "num_heads", "patch_size", "num_position_embeddings")
    backbone = {
        "type": "qwen3_vl",
        **dims["und"],
        "num_layers": dims["num_hidden_layers"],
        "num_heads": dims["num_attention_heads"],
        "num_kv_heads": dims["num_key_value_heads"],
        "head_dim": dims["head_dim"],
        "vocab_size": dims["vocab_size"],
        "rope_base": 5e6,
        "mrope_sections": dims["mrope_section"],
        "vision": {key: vision[key] for key in keys}
        | {"deepstack_layers": vision["deepstack_visual_indexes"]},
        "image_size": [64, 64],
        "text_length": TEXT,
        "tokenizer": "byte",
        **{key: dims[key] for key in ("pad_token_id", "vision_start_token_id", "vision_end_token_id")},
    }
    return ModelConfig(
        backbone=backbone,
        foresight=cosmos(sizes["cosmos"]),
        generation=ExpertConfig(**dims["expert"]),
        action=ExpertConfig(**dims["expert"]),
        view_size=(64, 64),
        chunk_size=policy["chunk_size"],
        max_state_dim=policy["max_state_dim"],
        max_action_dim=policy["max_action_dim"],
        mask_padding=False,
        positions="released",
    )


@pytest.fixture(scope="module")
def golden(goldens: Path) -> Golden:
    folder = goldens / "a1_3b_tiny"
    sizes = json.loads((folder / "tiny_dims.json").read_text())
    blocks, text = ("prefix", "middle", "suffix"), ("input_ids", "attention_mask", TEXT)
    return load(folder, config(sizes), blocks, NAMES, text)


class TestReleased3B(ReleasedMaths):
    """What both released types share, with this fixture's `golden`."""


@torch.no_grad()
def test_patches(golden: Golden) -> None:
    patches = golden.model.understanding.patchify(golden.given["images"][:, :, 1]).view(2, 3, 16, -1)
    theirs = golden.given["pixel_values"].view(2, 3, 16, -1)
    assert torch.equal(patches[golden.given["img_masks"]], theirs[golden.given["img_masks"]])


@torch.no_grad()
def test_predicted_latents_in_training(golden: Golden) -> None:
    _, latents = golden.model._joint(golden.batch, *golden.noise)
    present = golden.given["img_masks"]
    close(latents[present], golden.out["train.pred_cosmos_features"][present])
    future = golden.model.encode_frames(golden.batch.future.unsqueeze(2)).squeeze(2)
    close(future[present], golden.out["train.future_cosmos_latents"][present])


@torch.no_grad()
def test_predicted_latents_and_pictures_in_sampling(golden: Golden) -> None:
    present, out = golden.given["img_masks"], golden.out
    foresight = golden.model.prefill(golden.observation).foresight
    close(foresight[..., ::3, ::3][present], out["infer.pred_cosmos_features_stride3"][present])
    pictures = golden.model.tokenizer.decode(foresight.flatten(0, 1)).unflatten(0, (2, 3))
    close(pictures[..., ::7, ::7][present], out["infer.recon_images_stride7"][present], 2e-4)
    crop = pictures[0, 0, :, 96:160, 96:160]
    close(crop, out["infer.recon_image_sample0_view0_crop96_160"], 2e-4)


@torch.no_grad()
def test_released_positions_of_a_sample_with_an_absent_camera(golden: Golden) -> None:
    prefix = golden.model.prefill(golden.observation)
    last = golden.out["infer.suffix_position_ids"][0, :, -1]
    assert torch.equal(golden.model._action_positions(prefix.last_position, 1)[0, :, -1], last)

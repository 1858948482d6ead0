"""Our model with the released weights computes the released numbers (`a1_3b_tiny/README.txt`, `FACTS.md` §12).

The released tokenizer is an autoencoder; its latents enter here as golden tensors. Reached in float32 on a CPU:
embeddings 1e-6, expert outputs, velocities, foresight and actions 4e-6, squared errors 2e-5, gradient norms 2e-6
relative. The bounds leave a factor of about five for other CPUs.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vla_mot.batch import Observation
from vla_mot.flow.matching import integrate_euler, interpolate, velocity
from vla_mot.model.config import ModelConfig
from vla_mot.model.model import Prefix, VlaMotModel
from vla_mot.nn.expert import ExpertConfig
from vla_mot.nn.masks import ACTION, GENERATION, STATE, TokenLayout, build_attn_mask
from vla_mot.nn.rope import rotation

TOLERANCE = 2e-5
REAL_DIMS = 7
TEXT, PREFIX, MIDDLE, CHUNK = 10, 28, 96, 6

_RENAMED = [  # released name → ours
    (r"^model\.qwen3_vl_with_expert\.und_expert\.lm_head\.weight$", "understanding.embed_tokens.weight"),
    (r"^model\.qwen3_vl_with_expert\.und_expert\.model\.visual\.", "understanding.visual."),
    (
        r"^model\.qwen3_vl_with_expert\.und_expert\.model\.language_model\.layers\.(\d+)\.",
        r"stack.layers.\1.experts.understanding.",
    ),
    (
        r"^model\.qwen3_vl_with_expert\.und_expert\.model\.language_model\.norm\.",
        "stack.norms.understanding.",
    ),
    (
        r"^model\.qwen3_vl_with_expert\.und_expert\.model\.language_model\.embed_tokens\.",
        "understanding.embed_tokens.",
    ),
    (r"^model\.qwen3_vl_with_expert\.gen_expert\.layers\.(\d+)\.", r"stack.layers.\1.experts.generation."),
    (r"^model\.qwen3_vl_with_expert\.gen_expert\.norm\.", "stack.norms.generation."),
    (r"^model\.qwen3_vl_with_expert\.act_expert\.layers\.(\d+)\.", r"stack.layers.\1.experts.action."),
    (r"^model\.qwen3_vl_with_expert\.act_expert\.norm\.", "stack.norms.action."),
    (r"^model\.cosmos_in_proj\.", "generation.in_proj."),
    (r"^model\.downsample_conv\.", "generation.downsample."),
    (r"^model\.upsample_conv\.", "generation.upsample."),
    (r"^model\.cosmos_out_layer_norm\.", "generation.norm."),
    (r"^model\.cosmos_out_proj\.", "generation.out_proj."),
    (r"^model\.state_proj\.", "action.state_proj."),
    (r"^model\.action_in_proj\.", "action.in_proj."),
    (r"^model\.action_out_proj\.", "action.out_proj."),
    (r"^model\.action_time_mlp_(in|out)\.", r"action.time_mlp_\1."),
]


def our_name(released: str) -> str:
    for pattern, ours in _RENAMED:
        if re.match(pattern, released):
            return re.sub(pattern, ours, released)
    raise AssertionError(f"no name for {released}")


@dataclass(frozen=True)
class Golden:
    """The model with the released weights, what went in and what came out."""

    model: VlaMotModel
    given: dict[str, Tensor]
    out: dict[str, Tensor]
    grads: dict

    @property
    def observation(self) -> Observation:
        return Observation(
            images=self.given["images"][:, :, :2],
            view_mask=self.given["img_masks"],
            state=self.given["state"],
            token_ids=self.given["input_ids"][:, -TEXT:],
            token_mask=self.given["attention_mask"][:, -TEXT:].bool(),
        )


def config(dims: dict, policy: dict) -> ModelConfig:
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
        foresight={"type": "dct", "image_size": [256, 256]},  # the same latent shape, 16 × 32 × 32
        generation=ExpertConfig(**dims["expert"]),
        action=ExpertConfig(**dims["expert"]),
        view_size=(64, 64),
        chunk_size=policy["chunk_size"],
        max_state_dim=policy["max_state_dim"],
        max_action_dim=policy["max_action_dim"],
        mask_padding=False,
    )


@pytest.fixture(scope="module")
def golden(goldens: Path) -> Golden:
    folder = goldens / "a1_3b_tiny"
    sizes = json.loads((folder / "tiny_dims.json").read_text())
    model = VlaMotModel(config(sizes["dims"], sizes["policy_cfg"]))
    released = load_file(folder / "model.safetensors")
    weights = {our_name(key): value for key, value in released.items() if not key.startswith("model.cosmos.")}
    weights |= {key: value for key, value in model.state_dict().items() if key.startswith("tokenizer.")}
    model.load_state_dict(weights)  # strict: nothing missing, nothing left over
    given = {
        key: x.float() if x.is_floating_point() else x
        for key, x in load_file(folder / "inputs.safetensors").items()
    }
    out = load_file(folder / "outputs.safetensors")
    return Golden(model.eval(), given, out, json.loads((folder / "grads.json").read_text()))


def close(ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def joint(golden: Golden, outputs: tuple[str, ...]) -> tuple[dict[str, Tensor], TokenLayout, Tensor]:
    """The training forward of the stack, with our embeddings except the golden middle ones."""
    model, given = golden.model, golden.given
    hidden, layouts, positions = model._prefix_tokens(golden.observation)
    x = interpolate(given["noise"], given["action"], given["time"])
    actions = model._action_tokens(x[:, None], given["time"][:, None])
    hidden["generation"] = golden.out["train.middle_embs"]
    hidden["action"] = torch.cat((hidden["action"], actions), dim=1)
    layouts.append(TokenLayout.of(ACTION, torch.ones(2, CHUNK, dtype=torch.bool)))
    positions.append(model._action_positions(positions[-1][0, :, -1], 1))
    layout, where = TokenLayout.concat(layouts), torch.cat(positions, dim=2)
    turn = rotation(where, 16, model.understanding.geometry.rope)
    states, _ = model.stack(hidden, turn, build_attn_mask(layout), outputs=outputs)
    return states | {f"{name} embeddings": x for name, x in hidden.items()}, layout, where


@torch.no_grad()
def test_embeddings(golden: Golden) -> None:
    out, states = golden.out, joint(golden, ())[0]
    images = golden.model.understanding.embed_images(golden.given["images"][:, :, 1])
    present = golden.given["img_masks"]
    close(images[present], out["train.image_embs"].view(2, 3, 4, 64)[present], 2e-5)
    real = out["train.prefix_pad_masks"].bool()
    close(states["understanding embeddings"][real], out["train.prefix_embs"][real], 2e-5)
    close(states["action embeddings"], out["train.suffix_embs"], 2e-5)


@torch.no_grad()
def test_generation_tokens_of_golden_latents(golden: Golden) -> None:
    latents = golden.out["train.past_current_cosmos_latents_sample0_view0"][None, None]
    close(golden.model.generation.embed(latents)[0], golden.out["train.middle_embs"][0, :32])


@torch.no_grad()
def test_patches(golden: Golden) -> None:
    patches = golden.model.understanding.patchify(golden.given["images"][:, :, 1]).view(2, 3, 16, -1)
    theirs = golden.given["pixel_values"].view(2, 3, 16, -1)
    assert torch.equal(patches[golden.given["img_masks"]], theirs[golden.given["img_masks"]])


@torch.no_grad()
def test_positions_and_mask_of_real_tokens(golden: Golden) -> None:
    _, layout, positions = joint(golden, ())
    pads = [golden.out[f"train.{part}_pad_masks"].bool() for part in ("prefix", "middle", "suffix")]
    real = torch.cat(pads, dim=1)
    assert torch.equal(layout.valid, real)
    assert torch.equal(positions[:, real], golden.out["train.position_ids"][:, real])
    mask = build_attn_mask(layout)
    assert torch.equal(mask[real], golden.out["train.att_2d_masks"][real])
    assert layout.block[PREFIX] == GENERATION and layout.block[PREFIX + MIDDLE] == STATE


@torch.no_grad()
def test_outputs_of_all_experts(golden: Golden) -> None:
    states, layout, _ = joint(golden, ("understanding", "generation", "action"))
    real = dict(zip(("prefix", "middle"), layout.valid.split([PREFIX, MIDDLE, 7], dim=1)[:2], strict=True))
    close(states["understanding"][real["prefix"]], golden.out["train.prefix_out"][real["prefix"]])
    close(states["generation"][real["middle"]], golden.out["train.middle_out"][real["middle"]])
    close(states["action"], golden.out["train.suffix_out"])


@torch.no_grad()
def test_velocity_foresight_and_losses(golden: Golden) -> None:
    out, given = golden.out, golden.given
    x, target = (
        interpolate(given["noise"], given["action"], given["time"]),
        velocity(given["noise"], given["action"]),
    )
    close(x, out["train.x_t"], 1e-6)
    close(target, out["train.u_t"], 1e-6)
    states, _, _ = joint(golden, ("generation", "action"))
    predicted = golden.model.action.out_proj(states["action"][:, 1:])
    close(predicted, out["train.v_t"])
    error = (predicted - target).square()[..., :REAL_DIMS]
    close(error, out["train.loss_action"][..., :REAL_DIMS], 1e-4)
    present = given["img_masks"]
    latents = golden.model.generation.predict(states["generation"])
    close(latents[present], out["train.pred_cosmos_features"][present])
    loss = (latents - out["train.future_cosmos_latents"])[present].square().mean()
    close(loss, out["train.loss_gen"], 1e-5)


def test_gradients(golden: Golden) -> None:
    """Every weight but those before the golden latents' embedding: the middle embeddings are an input here."""
    states, _, _ = joint(golden, ("generation", "action"))
    out, given, model = golden.out, golden.given, golden.model
    target = velocity(given["noise"], given["action"])
    action = (model.action.out_proj(states["action"][:, 1:]) - target).square()[..., :REAL_DIMS].mean()
    miss = model.generation.predict(states["generation"]) - out["train.future_cosmos_latents"]
    model.zero_grad()
    (action + 0.01 * miss[given["img_masks"]].square().mean()).backward()
    close(action.detach(), torch.tensor(golden.grads["losses"]["loss_action"]), 1e-5)
    weights, compared = dict(model.named_parameters()), 0
    for key, numbers in golden.grads["grads"].items():
        if key.startswith(("model.cosmos.", "model.cosmos_in_proj", "model.downsample_conv")):
            continue
        gradient = weights[our_name(key)].grad
        if gradient is None:
            assert numbers is None or numbers[0] == 0, key
        else:
            assert abs(float(gradient.norm()) - numbers[0]) <= 1e-5 * numbers[0] + 1e-7, key
            compared += 1
    assert compared > 100


@torch.no_grad()
def prefilled(golden: Golden) -> Prefix:
    """`VlaMotModel.prefill` with the golden middle embeddings."""
    model = golden.model
    hidden, layouts, positions = model._prefix_tokens(golden.observation)
    hidden["generation"] = golden.out["train.middle_embs"]
    layout = TokenLayout.concat(layouts)
    turn = rotation(torch.cat(positions, dim=2), 16, model.understanding.geometry.rope)
    states, cache = model.stack(hidden, turn, build_attn_mask(layout), outputs=("generation",))
    return Prefix(cache, layout, positions[-1][0, :, -1], model.generation.predict(states["generation"]))


@torch.no_grad()
def test_cached_sampling(golden: Golden) -> None:
    """Sample 0 only: the released sampler counts the tokens of sample 1's absent camera in its positions."""
    model, out, prefix = golden.model, golden.out, prefilled(golden)
    for x, level, expected in zip(
        out["infer.x_t_steps"], out["infer.time_steps"], out["infer.v_t_steps"], strict=True
    ):
        close(model.denoise(prefix, x, level)[0], expected[0])
    actions = integrate_euler(lambda x, s: model.denoise(prefix, x, s), golden.given["sample_noise"], 4)
    close(actions[0], out["infer.actions"][0])
    close(prefix.foresight[0, ..., ::3, ::3], out["infer.pred_cosmos_features_stride3"][0])

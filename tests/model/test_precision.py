"""float32, bfloat16 weights and bfloat16 autocast run, with what the released checkpoints keep in float32.

How far bfloat16 deviates from float32 is bounded on the golden files (`tests/goldens`).
"""

import re
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from tests.model.tiny import FAMILIES, labelled, tiny_batch, tiny_model, tiny_noise
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm

from vla_mot.batch import Batch
from vla_mot.model.model import VlaMotModel
from vla_mot.model.precision import keeps_float32
from vla_mot.nn.norm import RMSNorm, like
from vla_mot.nn.recompute import Recompute

pytestmark = pytest.mark.filterwarnings("error")


def autocast() -> AbstractContextManager:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_norms_of_the_released_checkpoints_keep_float32_and_nothing_else(family: str) -> None:
    model = tiny_model(family=family)
    buffers = {name: buffer.dtype for name, buffer in model.named_buffers()}
    assert model.cast(torch.bfloat16) is model
    kept = {name for name, weight in model.named_parameters() if weight.dtype == torch.float32}
    layers = [
        f"stack.layers.{i}.experts.{e}" for i in (0, 1) for e in ("understanding", "generation", "action")
    ]
    norms = [
        f"{at}.{norm}.weight" for at in layers for norm in ("input_layernorm", "post_attention_layernorm")
    ]
    assert kept == {*norms, "stack.norms.understanding.weight"}
    assert {weight.dtype for weight in model.parameters()} == {torch.float32, torch.bfloat16}
    assert {name: buffer.dtype for name, buffer in model.named_buffers()} == buffers
    assert kept == {name for name in model.state_dict() if keeps_float32(name)}


def test_a_tokenizer_keeps_its_own_dtype() -> None:
    options = {"type": "cosmos", "image_size": [32, 32], "channels": 32, "channel_multipliers": [1, 1]}
    for dtype in ("float32", "bfloat16"):
        model = tiny_model(foresight={**options, "dtype": dtype}).cast(torch.bfloat16)
        assert {str(p.dtype) for p in model.tokenizer.parameters()} == {f"torch.{dtype}"}
        model.cast(torch.float32)
        assert {str(p.dtype) for p in model.tokenizer.parameters()} == {f"torch.{dtype}"}


def learned(
    model: VlaMotModel, batch: Batch, context: AbstractContextManager
) -> tuple[Tensor, dict[str, Tensor]]:
    with context:
        losses = model.losses(batch, *tiny_noise(batch, draws=2))
        total = losses.action_sum.sum() + losses.foresight_sum.sum()
    total.backward()
    return total, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", ["none", "full", "selective"])
@pytest.mark.parametrize("precision", ["weights", "autocast"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_step_runs_in_bfloat16(family: str, precision: str, recompute: Recompute) -> None:
    model, batch = tiny_model(family=family).train(), labelled(tiny_batch())
    expected, true_gradients = learned(model, batch, nullcontext())
    model.zero_grad()
    model.stack.recompute = recompute
    if precision == "weights":
        model.cast(torch.bfloat16)
    total, gradients = learned(model, batch, autocast() if precision == "autocast" else nullcontext())
    assert total.dtype == torch.float32
    assert abs(total - expected) < 0.02 * expected
    assert gradients.keys() == true_gradients.keys()
    for name, weight in model.named_parameters():
        assert weight.grad is None or weight.grad.dtype == weight.dtype, name
    mine, theirs = (torch.cat([x.float().flatten() for x in g.values()]) for g in (gradients, true_gradients))
    assert torch.nn.functional.cosine_similarity(mine, theirs, dim=0) > 0.99


@pytest.mark.parametrize("precision", ["weights", "autocast"])
@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_integrates_and_answers_in_float32(family: str, precision: str) -> None:
    model, batch = tiny_model(family=family).eval(), tiny_batch()
    noise, levels = tiny_noise(batch)
    expected, _ = model.sample(batch.observation, noise[:, 0], 4, 3)
    seen: list[torch.dtype] = []
    model.action.in_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    if precision == "weights":
        model.cast(torch.bfloat16)
    with autocast() if precision == "autocast" else nullcontext(), torch.no_grad():
        actions, foresight = model.sample(batch.observation, noise[:, 0], 4, 3)
        velocity = model.denoise(model.prefill(batch.observation), noise[:, 0], levels[:, 0])
    assert actions.dtype == foresight.dtype == velocity.dtype == torch.float32
    assert set(seen) == {torch.bfloat16 if precision == "weights" else torch.float32}
    assert 0 < (actions - expected).square().mean().sqrt() < 0.03 * expected.square().mean().sqrt()


def test_autocast_does_not_touch_what_is_foreseen() -> None:
    """The tokenizer's latents are a target: the same numbers in every precision."""
    model, images = tiny_model(), tiny_batch().observation.images
    expected = model.encode_frames(images)
    with autocast():
        assert torch.equal(model.encode_frames(images), expected)
        pictures = model.decode_latents(expected[:, :, 0])
    assert torch.equal(pictures, model.decode_latents(expected[:, :, 0]))


def test_the_residual_streams_have_the_weights_dtype() -> None:
    """Autocast adds to float32; only what is multiplied is rounded."""
    model, batch = tiny_model().eval(), tiny_batch()
    with autocast(), torch.no_grad():
        tokens = model.prefix_tokens(batch.observation)
        states, _ = model._run(tokens, tokens.layout, outputs=("generation", "action"))
    assert {x.dtype for x in (*tokens.hidden.values(), *states.values())} == {torch.float32}


@pytest.mark.parametrize("shape", [(2, 5, 32), (2, 5, 4, 8)])
def test_a_norm_rounds_once_and_keeps_the_dtype_of_its_input(shape: tuple[int, ...]) -> None:
    stock = Qwen3VLTextRMSNorm(shape[-1], eps=1e-6)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(stock.weight, mean=1.0, std=0.3, generator=generator)
    norm, x = like(stock), torch.randn(shape, generator=generator)
    assert norm.weight is stock.weight and isinstance(norm, RMSNorm)
    assert torch.equal(norm(x), stock(x))  # in float32 nothing differs
    exact = stock.weight * (
        x.bfloat16().float() * torch.rsqrt(x.bfloat16().float().square().mean(-1, True) + 1e-6)
    )
    assert torch.equal(norm(x.bfloat16()), exact.bfloat16())
    assert stock(x.bfloat16()).dtype == torch.float32  # what our joint layers could not project
    norm.weight.data = norm.weight.data.bfloat16()
    assert norm(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "name",
    [
        "stack.norms.generation.weight",
        "stack.norms.action.weight",
        "stack.layers.3.experts.action.self_attn.q_norm.weight",
        "stack.layers.3.experts.understanding.self_attn.k_norm.weight",
        "understanding.visual.blocks.0.norm1.weight",
        "understanding.vision_tower.encoder.layer.0.layernorm_before.weight",
        "generation.norm.weight",
    ],
)
def test_other_norms_follow_the_model(name: str) -> None:
    assert not keeps_float32(name) and re.search("norm", name)

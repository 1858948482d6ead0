"""Our Cosmos autoencoder computes the released tokenizer's numbers (`cosmos/README.txt`, `FACTS.md` §8).

Reached in float32 on a CPU: wavelet bands 1.2e-7, latents 5.3e-6, pictures 1.7e-5 (of a range of about ±10). The
bounds leave a factor of about five for other CPUs; the project's own are 1e-4 and 2e-4.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from vla_mot.foresight import build_tokenizer
from vla_mot.foresight.base import ForesightTokenizer
from vla_mot.foresight.cosmos_autoencoder import haar_patch

BANDS, LATENTS, PICTURES = 1e-6, 2.5e-5, 1e-4
TOKENIZERS = {
    "cosmos_tiny2": (
        "cosmos/cosmos_tiny2_weights_bf16.safetensors",
        {"channels": 32, "channel_multipliers": [1, 2, 2], "blocks_per_level": 2},
    ),
    "a1_3b_tiny_tokenizer": (
        "a1_3b_tiny/cosmos.safetensors",
        {"channels": 32, "channel_multipliers": [1, 2, 1], "blocks_per_level": 1},
    ),
}


@dataclass(frozen=True)
class Golden:
    """A tokenizer with released weights, what went in and what came out."""

    name: str
    tokenizer: ForesightTokenizer
    io: dict[str, Tensor]


def load_tokenizer(goldens: Path, name: str, **options) -> ForesightTokenizer:
    file, architecture = TOKENIZERS[name]
    tokenizer = build_tokenizer({"type": "cosmos", **architecture, **options})
    tokenizer.autoencoder.load_state_dict(load_file(goldens / file))  # strict: nothing missing or left over
    return tokenizer


@pytest.fixture(scope="module", params=TOKENIZERS)
def golden(goldens: Path, request: pytest.FixtureRequest) -> Golden:
    io = load_file(goldens / "cosmos" / f"{request.param}_io.safetensors")
    return Golden(request.param, load_tokenizer(goldens, request.param), io)


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@torch.no_grad()
@pytest.mark.parametrize("case", ["sq", "rect"])
def test_every_stage(golden: Golden, case: str) -> None:
    picture = golden.io[f"{case}.image"]
    close(haar_patch(picture), golden.io[f"{case}.patched_haar"], BANDS)
    close(golden.tokenizer.autoencoder.encoder(picture), golden.io[f"{case}.encoder_pre_quant_conv"], LATENTS)
    latents = golden.tokenizer.encode(picture)
    close(latents, golden.io[f"{case}.latent"], LATENTS)
    close(golden.tokenizer.decode(latents), golden.io[f"{case}.reconstruction"], PICTURES)


def test_decoding_of_random_latents(golden: Golden) -> None:
    close(golden.tokenizer.decode(golden.io["randz.latent"]), golden.io["randz.decoded"], PICTURES)


def test_resized_pictures(golden: Golden) -> None:
    size = golden.tokenizer.image_size
    picture = F.interpolate(golden.io["preproc.image01"], size, mode="bilinear", align_corners=False) * 2 - 1
    close(picture[..., ::7, ::7], golden.io["preproc.resized_pm1_stride7"], BANDS)
    close(golden.tokenizer.encode(picture), golden.io["preproc.latent"], LATENTS)


def test_bfloat16_stays_near(golden: Golden, goldens: Path) -> None:
    """As the released policies ran it. Found: 0.008 on average and 0.05 at most, of latents of 0.45."""
    rounded = load_tokenizer(goldens, golden.name, dtype="bfloat16")
    error = rounded.encode(golden.io["sq.image"]) - golden.io["sq.latent"]
    assert 1e-4 < error.abs().mean() < 0.02 and error.abs().max() < 0.2


@pytest.mark.parametrize(
    ("dtype", "expected", "bound"), [("float32", 1.42125, 1e-5), ("bfloat16", 1.42107, 5e-4)]
)
def test_foresight_loss_of_the_whole_model(goldens: Path, dtype: str, expected: float, bound: float) -> None:
    """The latents of the future frames that training compares with (`FACTS.md` 7.10 gives both losses)."""
    given = load_file(goldens / "a1_3b_tiny" / "inputs.safetensors")
    out = load_file(goldens / "a1_3b_tiny" / "outputs.safetensors")
    present = given["img_masks"].bool()
    frames = given["images"][:, :, 2][present].float()
    tokenizer = load_tokenizer(goldens, "a1_3b_tiny_tokenizer", dtype=dtype)
    resized = F.interpolate(frames, tokenizer.image_size, mode="bilinear", align_corners=False)
    latents = tokenizer.encode(resized * 2 - 1)
    if dtype == "float32":
        close(latents, out["train.future_cosmos_latents"][present], LATENTS)
    loss = (out["train.pred_cosmos_features"][present] - latents).square().mean()
    assert abs(float(loss) - expected) < bound


# ---- the real CI8x8 -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(goldens: Path) -> dict:
    return json.loads((goldens / "cosmos" / "cosmos_CI8x8_real.json").read_text())


@pytest.fixture(scope="module")
def ours() -> torch.nn.Module:
    with torch.device("meta"):
        return build_tokenizer({"type": "cosmos"}).autoencoder


def test_keys_shapes_and_counts_of_the_published_autoencoder(real: dict, ours: torch.nn.Module) -> None:
    shapes = {name: list(weight.shape) for name, weight in ours.state_dict().items()}
    assert shapes == real["shapes"] and len(shapes) == real["num_keys"]
    assert set(shapes) == {*real["encoder_jit_keys"], *real["decoder_jit_keys"]}

    def count(module: torch.nn.Module) -> int:
        return sum(weight.numel() for weight in module.parameters())

    assert count(ours) == real["total_params"]
    parts = (ours.encoder, ours.decoder, ours.quant_conv, ours.post_quant_conv)
    names = ("encoder_params", "decoder_params", "quant_conv", "post_quant_conv")
    assert [count(part) for part in parts] == [real[name] for name in names]


def test_every_activation_has_the_published_shape(real: dict, ours: torch.nn.Module) -> None:
    walked = {}

    def note(name: str):
        def hook(_module, args, output):
            walked[name] = (list(args[0].shape), list(output.shape))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in ours.named_modules() if name]
    latents = ours.encode(torch.empty(1, 3, 256, 256, device="meta")).latent
    picture = ours.decode(latents).sample
    for handle in handles:
        handle.remove()
    assert list(latents.shape) == real["latent_shape_256"] and list(picture.shape) == real["recon_shape_256"]
    assert list(ours.encode(torch.empty(6, 3, 256, 256, device="meta")).latent.shape) == [6, 16, 32, 32]
    expected = {name: (inputs, outputs) for name, inputs, outputs in real["activation_shapes_256"]}
    # Without parameters there, and so without modules here.
    absent = {
        name
        for name in expected
        if name.endswith(("patcher", "mid.block_1.nin_shortcut", "mid.block_2.nin_shortcut"))
    }
    assert {name: walked[name] for name in expected.keys() - absent} == {
        name: shapes for name, shapes in expected.items() if name not in absent
    }
    assert len(absent) == 6

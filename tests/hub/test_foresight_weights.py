"""Published autoencoders are loaded whole, from each of their layouts, or not at all."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.foresight import build_tokenizer
from vla_mot.foresight.base import ForesightTokenizer
from vla_mot.hub.foresight_weights import load_tokenizer

pytestmark = [  # the archives under test are made by what torch calls deprecated
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
COSMOS = {
    "type": "cosmos", "image_size": [32, 32], "channels": 32, "channel_multipliers": [1, 2], "blocks_per_level": 1,
}  # fmt: skip
TINY = {
    "type": "diffusers",
    "autoencoder": "AutoencoderTiny",
    "image_size": [32, 32],
    "config": {
        "encoder_block_out_channels": [8, 8], "decoder_block_out_channels": [8, 8],
        "num_encoder_blocks": [1, 1], "num_decoder_blocks": [1, 1],
    },
}  # fmt: skip


class Half(nn.Module):
    """One half of an autoencoder as NVIDIA traces it: the wavelets of the patching are buffers of the archive."""

    def __init__(self, **parts: nn.Module):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.order = list(parts)
        for name, patcher in (("encoder", "patcher"), ("decoder", "unpatcher")):
            if name in parts and not hasattr(parts[name], patcher):
                constants = nn.Module()
                constants.register_buffer("wavelets", torch.full((2,), 0.5**0.5))
                constants.register_buffer("_arange", torch.arange(2))
                parts[name].add_module(patcher, constants)

    def forward(self, x):
        for name in self.order:
            x = getattr(self, name)(x)
        return x


def picture() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3)).clamp(-1, 1)


def fresh(seed: int, options: dict = COSMOS, **more) -> ForesightTokenizer:
    torch.manual_seed(seed)
    return build_tokenizer(options | more)


def write_archives(folder: Path, tokenizer: ForesightTokenizer, **extra: nn.Module) -> tuple:
    """encoder.jit and decoder.jit of a tokenizer, and the traced halves themselves."""
    model, latents = tokenizer.autoencoder, tokenizer.encode(picture())
    encoder = Half(encoder=model.encoder, quant_conv=model.quant_conv, **extra)
    decoder = Half(post_quant_conv=model.post_quant_conv, decoder=model.decoder)
    traced = torch.jit.trace(encoder, picture()), torch.jit.trace(decoder, latents)
    for half, name in zip(traced, ("encoder.jit", "decoder.jit"), strict=True):
        half.save(str(folder / name))
    return traced


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the archives of the tokenizer of seed 1."""
    folder = tmp_path_factory.mktemp("CI8x8")
    write_archives(folder, fresh(1))
    return folder


def test_archives_load_and_compute_the_same_bits(tmp_path, monkeypatch):
    original = fresh(1)
    encoder, decoder = write_archives(tmp_path, original)
    assert (
        "encoder.patcher.wavelets" in encoder.state_dict()
        and "decoder.unpatcher._arange" in decoder.state_dict()
    )
    monkeypatch.setattr(torch.jit, "load", None)  # nothing is executed
    loaded = fresh(2)
    assert not torch.equal(loaded.encode(picture()), original.encode(picture()))
    load_tokenizer(loaded, tmp_path)
    latents = loaded.encode(picture())
    assert torch.equal(latents, original.encode(picture())) and torch.equal(latents, encoder(picture()))
    assert torch.equal(loaded.decode(latents), decoder(latents))
    assert not any(weight.requires_grad for weight in loaded.parameters())


def test_archives_load_into_a_tokenizer_on_the_meta_device(published):
    with torch.device("meta"):
        loaded = build_tokenizer(COSMOS)
    load_tokenizer(loaded, published)
    assert torch.equal(loaded.encode(picture()), fresh(1).encode(picture()))
    assert not any(weight.requires_grad for weight in loaded.parameters())


def test_weights_take_the_dtype_of_the_tokenizer(published):
    loaded = fresh(2, dtype="bfloat16")
    load_tokenizer(loaded, published)
    assert torch.equal(loaded.encode(picture()), fresh(1, dtype="bfloat16").encode(picture()))


def test_our_safetensors_load(tmp_path):
    path = tmp_path / "cosmos.safetensors"
    save_file(fresh(1).autoencoder.state_dict(), path)
    loaded = fresh(2)
    load_tokenizer(loaded, path)
    assert torch.equal(loaded.encode(picture()), fresh(1).encode(picture()))


@pytest.mark.parametrize("options", [COSMOS, TINY], ids=["cosmos", "tiny"])
def test_a_diffusers_folder_loads(tmp_path, options):
    fresh(1, options).autoencoder.save_pretrained(tmp_path)
    loaded = fresh(2, options)
    load_tokenizer(loaded, tmp_path)
    assert torch.equal(loaded.encode(picture()), fresh(1, options).encode(picture()))


def test_the_golden_weights_load(goldens):
    path = goldens / "cosmos" / "cosmos_tiny2_weights_bf16.safetensors"
    tokenizer = fresh(0, channels=32, channel_multipliers=[1, 2, 2], blocks_per_level=2)
    load_tokenizer(tokenizer, path)
    assert torch.equal(tokenizer.autoencoder.quant_conv.bias, load_file(path)["quant_conv.bias"].float())


def test_weights_that_do_not_fit_are_named(tmp_path):
    weights = fresh(1).autoencoder.state_dict()
    weights["encoder.extra"] = torch.zeros(2)
    weights["quant_conv.bias"] = torch.zeros(17)
    weights["post_quant_conv.bias"] = torch.zeros(16, dtype=torch.int64)
    del weights["decoder.conv_in.bias"]
    save_file(weights, tmp_path / "cosmos.safetensors")
    tokenizer = fresh(2)
    before = tokenizer.encode(picture())
    with pytest.raises(CheckpointError) as raised:
        load_tokenizer(tokenizer, tmp_path / "cosmos.safetensors")
    for told in (
        r"unexpected encoder.extra (2,)", "missing decoder.conv_in.bias (64,)",
        "quant_conv.bias has shape (17,), the autoencoder's is (16,)", "post_quant_conv.bias has dtype torch.int64",
    ):  # fmt: skip
        assert told in str(raised.value)
    assert torch.equal(tokenizer.encode(picture()), before)


def test_only_the_traced_wavelets_are_dropped(tmp_path):
    class Stowaway(nn.Identity):
        def __init__(self):
            super().__init__()
            self.register_buffer("wavelets", torch.zeros(2))

    write_archives(tmp_path, fresh(1), stowaway=Stowaway())
    with pytest.raises(CheckpointError, match=r"unexpected stowaway\.wavelets \(2,\)"):
        load_tokenizer(fresh(2), tmp_path)


def test_other_architectures_are_refused(published):
    with pytest.raises(
        CheckpointError, match=r"missing decoder\.up\.0\.block\.2\.conv1.*See its options in conf/foresight"
    ):
        load_tokenizer(fresh(2, blocks_per_level=2), published)


def test_half_an_archive_or_none_is_refused(tmp_path, published):
    (tmp_path / "encoder.jit").write_bytes((published / "encoder.jit").read_bytes())
    with pytest.raises(CheckpointError, match=r"decoder\.jit is missing"):
        load_tokenizer(fresh(2), tmp_path)
    (tmp_path / "decoder.jit").write_bytes((published / "encoder.jit").read_bytes())
    with pytest.raises(CheckpointError, match=r"both encoder\.jit and decoder\.jit hold"):
        load_tokenizer(fresh(2), tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "model.bin").touch()
    with pytest.raises(CheckpointError, match=r"found: model\.bin\. Pickled weights.*are not read"):
        load_tokenizer(fresh(2), empty)
    with pytest.raises(CheckpointError, match="found: no folder"):
        load_tokenizer(fresh(2), tmp_path / "nowhere")


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "cosmos.safetensors"
    save_file(fresh(1).autoencoder.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        load_tokenizer(fresh(2), path)


def test_a_config_that_differs_is_refused_though_its_weights_would_fit(tmp_path):
    fresh(1, TINY).autoencoder.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"act_fn": "silu"}))
    with pytest.raises(CheckpointError, match=r"differs.*act_fn: 'silu' \(ours 'relu'\); copy them"):
        load_tokenizer(fresh(2, TINY), tmp_path)
    file.write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(
        CheckpointError, match="holds a AutoencoderKL, the foresight autoencoder is a AutoencoderTiny"
    ):
        load_tokenizer(fresh(2, TINY), tmp_path)


def test_a_tokenizer_without_weights_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="DCTTokenizer has no weights to load"):
        load_tokenizer(build_tokenizer({"type": "dct"}), tmp_path)

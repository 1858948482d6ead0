import pytest
import torch
from torch.nn import functional as F

from vla_mot.errors import ConfigError
from vla_mot.foresight import build_tokenizer
from vla_mot.foresight.cosmos_autoencoder import CosmosAutoencoder, haar_patch, haar_unpatch

TINY = {"type": "cosmos", "image_size": [32, 64], "channels": 32, "channel_multipliers": [1, 2]}
WAVELET = 0.5**0.5


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tiny(**options):
    torch.manual_seed(0)
    return build_tokenizer({**TINY, **options})


def convolved_bands(x: torch.Tensor) -> torch.Tensor:
    """One level of Haar bands, as strided convolutions with the wavelet in the picture's own dtype."""
    w, channels = torch.tensor(WAVELET).to(x.dtype), x.shape[1]
    low, high = torch.stack((w, w)), torch.stack((w, -w))

    def along(x, kernel, shape, stride):
        return F.conv2d(x, kernel.view(shape).repeat(channels, 1, 1, 1), stride=stride, groups=channels)

    columns = [along(x, kernel, (1, 1, 1, 2), (1, 2)) for kernel in (low, high)]
    return torch.cat([along(c, k, (1, 1, 2, 1), (2, 1)) for c in columns for k in (low, high)], dim=1) / 2


def test_haar_bands_are_sums_and_differences_of_each_block():
    a, b, c, d = 1.0, 2.0, 4.0, 8.0
    block = torch.tensor([[a, b], [c, d]]).repeat(2, 2)[None, None]  # the second level sees constant bands
    low_low, low_high, high_low, high_high = haar_patch(block).flatten().view(4, 4)[0] * 4
    assert low_low == pytest.approx(a + b + c + d, rel=1e-6)
    assert low_high == pytest.approx(a + b - c - d, rel=1e-6)
    assert high_low == pytest.approx(a - b + c - d, rel=1e-6)
    assert high_high == pytest.approx(a - b - c + d, rel=1e-6)


def test_haar_patches_lose_nothing():
    x = draw(2, 3, 16, 24)
    assert haar_patch(x).shape == (2, 48, 4, 6)
    torch.testing.assert_close(haar_unpatch(haar_patch(x)), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_haar_patches_equal_convolutions_with_the_wavelet_of_the_dtype(dtype):
    x = draw(2, 3, 64, 64).to(dtype)
    ours, theirs = haar_patch(x), convolved_bands(convolved_bands(x))
    torch.testing.assert_close(ours, theirs, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    if dtype == torch.bfloat16:
        assert (ours == theirs).float().mean() > 0.99  # rounded as often, and at the same places


def test_latents_have_the_stated_shape_and_six_pictures_go_in_one_call():
    tokenizer = tiny()
    assert (tokenizer.latent_channels, tokenizer.compression, tokenizer.latent_size) == (16, 8, (4, 8))
    latents = tokenizer.encode(draw(6, 3, 32, 64))
    assert latents.shape == (6, 16, 4, 8)
    assert tokenizer.decode(latents).shape == (6, 3, 32, 64)
    alone = torch.cat([tokenizer.encode(picture[None]) for picture in draw(6, 3, 32, 64)])
    torch.testing.assert_close(latents, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("compression", "size"), [(4, (8, 16)), (16, (2, 4))])
def test_other_compressions_move_the_number_of_halvings(compression, size):
    tokenizer = tiny(spatial_compression=compression)
    assert tokenizer.encode(draw(1, 3, 32, 64)).shape[2:] == tokenizer.latent_size == size
    assert tokenizer.decode(draw(1, 16, *size)).shape == (1, 3, 32, 64)


def test_everything_is_frozen_and_training_mode_changes_nothing():
    tokenizer = tiny().train()
    assert not any(weight.requires_grad for weight in tokenizer.parameters())
    assert not any(module.training for module in tokenizer.autoencoder.modules())
    assert not tokenizer.encode(draw(1, 3, 32, 64).requires_grad_()).requires_grad
    assert not tokenizer.decode(draw(1, 16, 4, 8).requires_grad_()).requires_grad


def test_bfloat16_rounds_the_weights_and_returns_the_dtype_that_came():
    exact, rounded = tiny(), tiny(dtype="bfloat16")
    assert {weight.dtype for weight in rounded.parameters()} == {torch.bfloat16}
    picture = draw(1, 3, 32, 64).clamp(-1, 1)
    latents, other = exact.encode(picture), rounded.encode(picture)
    assert other.dtype == rounded.decode(other).dtype == torch.float32
    assert 1e-4 < (other - latents).abs().mean() < 0.05 * latents.abs().mean()


def test_autocast_around_it_changes_nothing():
    tokenizer, picture = tiny(), draw(1, 3, 32, 64)
    latents = tokenizer.encode(picture)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(picture), latents)
        assert tokenizer.decode(latents).dtype == torch.float32


def test_built_on_the_meta_device_it_needs_nothing_but_its_parameters():
    ready = tiny()
    with torch.device("meta"):
        tokenizer = build_tokenizer(TINY)
    assert not list(tokenizer.buffers())
    tokenizer.load_state_dict(ready.state_dict(), assign=True)
    picture = draw(1, 3, 32, 64)
    assert torch.equal(tokenizer.encode(picture), ready.encode(picture))


def test_it_is_a_diffusers_model(tmp_path):
    autoencoder = tiny().autoencoder
    autoencoder.save_pretrained(tmp_path)
    again = CosmosAutoencoder.from_pretrained(tmp_path)
    assert {key: again.config[key] for key in autoencoder.config} == dict(autoencoder.config)
    with torch.no_grad():
        picture = draw(1, 3, 32, 64)
        assert torch.equal(again(picture).sample, autoencoder(picture).sample)


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"multiples of 8, got \(1, 3, 33, 64\)"):
        tiny().encode(draw(1, 3, 33, 64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": [60, 64]}, "image_size must be positive multiples of 8, got .60, 64"),
        ({"spatial_compression": 6}, r"must be one of \[4, 8, 16\] with 2 channel_multipliers, got 6"),
        ({"spatial_compression": 32}, "must be one of"),
        ({"channels": 40}, "positive multiples of 32, got 40 × "),
        ({"channel_multipliers": []}, "must be one of|multiples of 32"),
        ({"blocks_per_level": 0}, "must be at least 1"),
        ({"dtype": "bfloat"}, "Did you mean 'bfloat16'"),
        ({"channel": 32}, "unknown key 'foresight.channel'.*'foresight.channels'"),
        ({"image_size": "256"}, "foresight.image_size: expected a list, got '256'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**options)


@pytest.mark.parametrize("helper", ["base", "frozen", "cosmos_autoencoder"])
def test_helpers_are_no_tokenizers(helper):
    with pytest.raises(ConfigError, match=f"unknown foresight tokenizer '{helper}'.*cosmos, dct, diffusers"):
        build_tokenizer({"type": helper})

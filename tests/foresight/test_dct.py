import math

import pytest
import torch

from vla_mot.errors import ConfigError
from vla_mot.foresight import build_tokenizer


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_latents_have_sixteen_channels_at_an_eighth_of_the_size() -> None:
    tokenizer = build_tokenizer({"type": "dct", "image_size": [48, 64]})
    latents = tokenizer.encode(draw(2, 3, 48, 64))
    assert latents.shape == (2, 16, 6, 8)
    assert tokenizer.latent_size == (6, 8) and tokenizer.latent_channels == 16 and tokenizer.compression == 8
    assert tokenizer.decode(latents).shape == (2, 3, 48, 64)
    assert not list(tokenizer.parameters())


@pytest.mark.parametrize("coefficients", [(8, 4, 4), (64, 64, 64)])
def test_encoding_what_was_decoded_returns_the_latents(coefficients: tuple) -> None:
    tokenizer = build_tokenizer({"type": "dct", "image_size": [32, 32], "coefficients": list(coefficients)})
    tokenizer.fit(draw(4, 3, 32, 32))
    latents = draw(2, tokenizer.latent_channels, 4, 4)
    assert torch.allclose(tokenizer.encode(tokenizer.decode(latents)), latents, atol=1e-5)


def test_all_coefficients_together_lose_nothing() -> None:
    tokenizer = build_tokenizer({"type": "dct", "image_size": [32, 32], "coefficients": [64, 64, 64]})
    pictures = draw(2, 3, 32, 32)
    assert torch.allclose(tokenizer.decode(tokenizer.encode(pictures)), pictures, atol=1e-5)


def test_the_kept_luma_coefficients_are_orthonormal() -> None:
    tokenizer = build_tokenizer({"type": "dct", "image_size": [8, 8]})
    grey = (
        torch.eye(64).reshape(64, 1, 8, 8).expand(-1, 3, -1, -1)
    )  # every pixel in turn, equal in R, G and B
    basis = tokenizer.encode(grey).flatten(1)  # (64 pixels, 16 coefficients)
    gram = basis.T @ basis
    assert torch.allclose(gram[:8, :8], torch.eye(8), atol=1e-5)
    assert gram[8:].abs().max() < 1e-5  # grey has no chroma


def test_the_first_coefficient_is_the_mean_and_the_next_are_the_lowest_frequencies() -> None:
    tokenizer = build_tokenizer({"type": "dct", "image_size": [8, 8]})
    assert torch.allclose(tokenizer.encode(torch.ones(1, 3, 8, 8))[0, 0], torch.tensor(8.0), atol=1e-5)
    x = torch.cos(math.pi * (2 * torch.arange(8) + 1) / 16)
    across = tokenizer.encode(x.expand(1, 3, 8, 8)).flatten()
    down = tokenizer.encode(x[:, None].expand(1, 3, 8, 8)).flatten()
    assert int(across.abs().argmax()) == 1 and int(down.abs().argmax()) == 2


def test_a_smooth_colour_picture_survives() -> None:
    tokenizer = build_tokenizer({"type": "dct", "image_size": [64, 64]})
    tokenizer.fit(draw(4, 3, 64, 64))
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    picture = torch.stack((x, y, -0.5 * x + 0.3 * y))[None]
    assert (tokenizer.decode(tokenizer.encode(picture)) - picture).abs().max() < 0.02  # of a range of 2


def test_fitting_whitens_every_channel_and_is_stored_with_the_model() -> None:
    tokenizer = build_tokenizer({"type": "dct", "image_size": [32, 32]})
    pictures = 0.3 + 0.2 * draw(16, 3, 32, 32)
    tokenizer.fit(pictures)
    latents = tokenizer.encode(pictures)
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert (latents.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-4
    other = build_tokenizer({"type": "dct", "image_size": [32, 32]})
    assert set(tokenizer.state_dict()) == {"latent_mean", "latent_std"}
    other.load_state_dict(tokenizer.state_dict())
    assert torch.equal(other.encode(pictures), latents)


def test_constant_pictures_cannot_be_whitened() -> None:
    with pytest.raises(ConfigError, match="constant in some DCT channel"):
        build_tokenizer({"type": "dct", "image_size": [32, 32]}).fit(torch.zeros(4, 3, 32, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": [60, 64]}, "multiples of the block 8"),
        ({"coefficients": [0, 4, 4]}, "must lie in 1 … 64"),
        ({"imagesize": [64, 64]}, "unknown key 'foresight.imagesize'.*'foresight.image_size'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_tokenizer({"type": "dct", **options})

"""Frames on their way into the foresight tokenizer: fitted as they are encoded."""

import pytest
import torch
from tests.model.tiny import tiny_model


@pytest.mark.parametrize("side", [32, 16, 64])
@pytest.mark.parametrize("as_floats", [False, True])
def test_what_is_fitted_is_what_is_encoded(side: int, as_floats: bool) -> None:
    model = tiny_model(foresight={"type": "dct", "image_size": [side, side]}, foresight_stride=1)
    draws = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (24, 3, 32, 32), generator=draws, dtype=torch.uint8)
    given = frames.float() / 255 if as_floats else frames
    model.fit_tokenizer(given)
    latents = model.encode_frames(given[:, None, None]).flatten(0, 2)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 1e-4


def test_every_level_of_a_byte_has_its_place_between_minus_one_and_one() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    model = tiny_model(foresight={"type": "dct", "image_size": [16, 16]}, foresight_stride=1)
    assert torch.equal(model._tokenizer_pictures(levels), levels.float() / 127.5 - 1)

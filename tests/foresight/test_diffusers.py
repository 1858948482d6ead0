import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLCosmos, AutoencoderTiny
from torch.nn import functional as F

from vla_mot.errors import ConfigError
from vla_mot.foresight import build_tokenizer

TINY = {
    "encoder_block_out_channels": [8, 8],
    "decoder_block_out_channels": [8, 8],
    "num_encoder_blocks": [1, 1],
    "num_decoder_blocks": [1, 1],
}
KL = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "latent_channels": 3,
}
COSMOS = {
    "encoder_block_out_channels": [8, 8, 8, 8],
    "decode_block_out_channels": [8, 8, 8, 8],
    "num_layers": 1,
    "latent_channels": 6,
}
# class, its config, (latent channels, compression), (scale, shift)
FAMILIES = [
    (AutoencoderTiny, TINY, (4, 2), (1.0, 0.0)),
    (AutoencoderKL, KL, (3, 2), (0.18215, 0.0)),
    (AutoencoderKLCosmos, COSMOS, (6, 8), (1.0, 0.0)),
]
each_family = pytest.mark.parametrize(
    ("kind", "config", "shape", "affine"), FAMILIES, ids=[family[0].__name__ for family in FAMILIES]
)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


def tiny(kind=AutoencoderTiny, config=TINY, **options):
    torch.manual_seed(0)
    given = {"type": "diffusers", "autoencoder": kind.__name__, "config": config, "image_size": [32, 48]}
    return build_tokenizer(given | options)


@each_family
def test_a_wrapper_states_its_latents_and_equals_the_autoencoder(kind, config, shape, affine):
    tokenizer, picture = tiny(kind, config), draw(2, 3, 32, 48)
    assert (tokenizer.latent_channels, tokenizer.compression) == shape
    assert (tokenizer.latent_scale, tokenizer.latent_shift) == affine
    latents = tokenizer.encode(picture)
    assert latents.shape == (2, shape[0], *tokenizer.latent_size)
    assert tokenizer.decode(latents).shape == picture.shape
    video = kind is AutoencoderKLCosmos
    with torch.no_grad():
        given = tokenizer.autoencoder.encode(picture[:, :, None] if video else picture)
        raw = given.latents if kind is AutoencoderTiny else given.latent_dist.mode()
        back = tokenizer.autoencoder.decode(raw).sample
    assert torch.equal(latents, (raw.squeeze(2) if video else raw) * affine[0])
    torch.testing.assert_close(
        tokenizer.decode(latents), back.squeeze(2) if video else back, rtol=0, atol=1e-5
    )


@each_family
def test_encoding_is_deterministic_and_frozen(kind, config, shape, affine):
    tokenizer, picture = tiny(kind, config).train(), draw(1, 3, 32, 48).requires_grad_()
    assert torch.equal(tokenizer.encode(picture), tokenizer.encode(picture))
    assert not tokenizer.encode(picture).requires_grad
    assert not any(weight.requires_grad for weight in tokenizer.parameters())


@each_family
def test_built_on_the_meta_device_it_needs_nothing_but_what_is_saved(kind, config, shape, affine):
    ready = tiny(kind, config)
    with torch.device("meta"):
        tokenizer = tiny(kind, config)
    assert all(weight.is_meta for weight in tokenizer.state_dict().values())
    tokenizer.load_state_dict(ready.state_dict(), assign=True)
    picture = draw(1, 3, 32, 48)
    assert torch.equal(tokenizer.encode(picture), ready.encode(picture))
    assert torch.equal(tokenizer.decode(ready.encode(picture)), ready.decode(ready.encode(picture)))


def test_what_is_not_saved_follows_to_another_device():
    tokenizer = tiny(AutoencoderKLCosmos, COSMOS)
    saved, unsaved = tokenizer.state_dict().keys(), dict(tokenizer.named_buffers())
    assert unsaved and not unsaved.keys() & saved
    tokenizer.reset_buffers("meta")
    assert all(buffer.is_meta for buffer in tokenizer.buffers())
    assert not any(weight.is_meta for weight in tokenizer.parameters())


def test_the_mode_of_a_distribution_is_its_mean_not_a_sample():
    tokenizer, picture = tiny(AutoencoderKL, KL, latent_scale=1.0), draw(1, 3, 32, 48)
    with torch.no_grad():
        distribution = tokenizer.autoencoder.encode(picture).latent_dist
    assert torch.equal(tokenizer.encode(picture), distribution.mean)
    assert not torch.equal(distribution.sample(), distribution.mean)


def test_scale_and_shift_move_the_latents_and_back():
    plain, moved = tiny(), tiny(latent_scale=2.0, latent_shift=0.5)
    picture = draw(1, 3, 32, 48)
    torch.testing.assert_close(moved.encode(picture), (plain.encode(picture) - 0.5) * 2)
    torch.testing.assert_close(moved.decode(moved.encode(picture)), plain.decode(plain.encode(picture)))
    told = tiny(AutoencoderKL, KL | {"scaling_factor": 0.25, "shift_factor": 1.5})
    assert (told.latent_scale, told.latent_shift) == (0.25, 1.5)


def test_bfloat16_weights_return_the_dtype_that_came():
    tokenizer, picture = tiny(dtype="bfloat16"), draw(1, 3, 32, 48)
    assert {weight.dtype for weight in tokenizer.parameters()} == {torch.bfloat16}
    assert tokenizer.encode(picture).dtype == torch.float32
    assert F.mse_loss(tokenizer.encode(picture), tiny().encode(picture)) < 1e-3


def test_a_saved_config_rebuilds_the_autoencoder():
    saved = dict(tiny().autoencoder.config) | {
        "_class_name": "AutoencoderTiny",
        "_diffusers_version": "0.39.0",
    }
    assert "block_out_channels" in saved  # written by diffusers, taken by no constructor
    tokenizer = tiny(config=saved)
    assert tokenizer.state_dict().keys() == tiny().state_dict().keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"autoencoder": "AutoencoderTini"}, "unknown diffusers autoencoder.*Did you mean 'AutoencoderTiny'"),
        ({"autoencoder": "UNet2DModel"}, "unknown diffusers autoencoder"),
        ({"autoencoder": "AutoencoderMixin"}, "unknown diffusers autoencoder"),
        ({"autoencoder": "os.system"}, "unknown diffusers autoencoder"),
        (
            {"autoencoder": "AutoencoderKLTemporalDecoder", "config": {}},
            "does not encode and decode pictures",
        ),
        (
            {"config": TINY | {"latent_chanels": 4}},
            "'foresight.config.latent_chanels'.*config.latent_channels'",
        ),
        ({"config": TINY | {"block_out_channels": [9]}}, r"block_out_channels is \[9\].*makes it \[8, 8\]"),
        ({"config": TINY | {"num_encoder_blocks": [1]}}, "does not build a AutoencoderTiny.*same length"),
        ({"config": TINY | {"_class_name": "AutoencoderKL"}}, "of a AutoencoderKL, but.*AutoencoderTiny"),
        ({"config": TINY | {"in_channels": 1}}, "does not encode and decode pictures"),
        ({"image_size": [33, 48]}, "Choose another foresight.image_size"),
        ({"latent_scale": 0}, "must not be 0"),
        ({"scale": 1.0}, "unknown key 'foresight.scale'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**options)


def test_options_that_are_missing_are_named():
    with pytest.raises(ConfigError, match=r"foresight\.autoencoder .*must be given"):
        build_tokenizer({"type": "diffusers"})

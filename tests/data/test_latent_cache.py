"""Cached latents are those that the tokenizer would give now."""

import pickle
import shutil

import pytest
import torch

from tests.data.conftest import GRIPPER, VIEW
from tests.data.test_frames import lose_an_episode
from vla_mot.data.frame_cache import FrameCache
from vla_mot.data.frames import VideoFrames
from vla_mot.data.latent_cache import LatentCache
from vla_mot.data.pictures import EpisodeError
from vla_mot.data.source import Source
from vla_mot.errors import ConfigError, DatasetError
from vla_mot.foresight.base import build_tokenizer


@pytest.fixture(scope="session")
def encode():
    """A real tokenizer, as the model calls it."""
    tokenizer = build_tokenizer({"type": "dct", "image_size": list(VIEW)})

    def encode(pictures):
        assert pictures.dtype == torch.uint8
        return tokenizer.encode(pictures.float() / 127.5 - 1)

    return encode


@pytest.fixture
def latents(cache, source, encode, tmp_path) -> LatentCache:
    return LatentCache.open(cache, source, encode, "dct", folder=tmp_path)


def refuse_to_encode(pictures):
    raise AssertionError("encoded again")


def test_latents_equal_encoding_on_the_fly(cache, source, encode, latents):
    assert latents.shape == (60, 2, 16, VIEW[0] // 8, VIEW[1] // 8)
    drawn = torch.tensor([[3, 59], [41, 3], [20, 0]])
    assert torch.equal(
        latents.gather(drawn), encode(cache.gather(drawn).flatten(0, 2)).unflatten(0, (3, 2, 2))
    )


def test_they_are_the_same_from_frames_that_are_decoded(source, encode, latents, tmp_path):
    other = LatentCache.open(VideoFrames(source, VIEW), source, encode, "dct", folder=tmp_path / "other")
    assert other.folder.name == latents.folder.name
    assert torch.equal(other.gather(torch.arange(60)), latents.gather(torch.arange(60)))


def test_half_precision_is_within_its_rounding(cache, source, encode, latents, tmp_path):
    half = LatentCache.open(cache, source, encode, "dct", "float16", tmp_path)
    assert half.folder != latents.folder
    assert half.gather(torch.tensor([0])).dtype == torch.float16
    torch.testing.assert_close(
        half.gather(torch.arange(60)).float(), latents.gather(torch.arange(60)), rtol=2**-11, atol=1e-7
    )


def test_they_are_encoded_once_and_opened_without_a_model(cache, source, latents, tmp_path):
    for encode in (refuse_to_encode, None):
        again = LatentCache.open(cache, source, encode, "dct", folder=tmp_path)
        assert again.folder == latents.folder
    elsewhere = pickle.loads(pickle.dumps(latents))
    assert torch.equal(elsewhere.gather(torch.tensor([7])), latents.gather(torch.tensor([7])))


def test_another_tokenizer_view_or_content_has_latents_of_its_own(
    cache, source, latents, recording, tmp_path
):
    with pytest.raises(DatasetError, match="not cached yet"):
        LatentCache.open(cache, source, None, "vae", folder=tmp_path)
    with pytest.raises(DatasetError, match="not cached yet"):
        LatentCache.open(VideoFrames(source, (16, 16)), source, None, "dct", folder=tmp_path)
    root = shutil.copytree(recording.root, tmp_path / "edited")
    (root / "meta" / "note").touch()
    with pytest.raises(DatasetError, match="not cached yet"):
        LatentCache.open(cache, Source.open(root, recording.embodiment), None, "dct", folder=tmp_path)


def test_damage_is_seen_and_mended(cache, source, encode, latents, tmp_path, caplog):
    wanted = latents.gather(torch.arange(60))
    with (latents.folder / "latents.bin").open("r+b") as file:
        file.write(b"damage")
    again = LatentCache.open(cache, source, encode, "dct", folder=tmp_path)
    assert torch.equal(again.gather(torch.arange(60)), wanted)
    assert "latent cache" in caplog.text
    assert "is damaged and is built again" in caplog.text


def test_an_episode_that_cannot_be_read_is_a_hole(recording, encode, latents, tmp_path, monkeypatch):
    source = Source.open(recording.root, recording.embodiment, missing="report")
    lose_an_episode(source, monkeypatch, 0)
    frames = FrameCache.open(source, VIEW, tmp_path / "frames")
    holed = LatentCache.open(frames, source, encode, "dct", folder=tmp_path / "latents")
    real = torch.arange(20, 60)
    assert torch.equal(holed.gather(real), latents.gather(real))
    with pytest.raises(EpisodeError, match="episode 0 is lost") as caught:
        holed.gather(torch.tensor([19]))
    assert (caught.value.episode, caught.value.camera) == (0, GRIPPER)


@pytest.mark.parametrize(("scale", "dtype"), [(1e6, "float16"), (float("nan"), "float32")])
def test_latents_that_cannot_be_stored_are_refused(cache, source, encode, tmp_path, scale, dtype):
    with pytest.raises(ConfigError, match=f"cannot be stored as {dtype}"):
        LatentCache.open(cache, source, lambda pictures: encode(pictures) * scale, "big", dtype, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]

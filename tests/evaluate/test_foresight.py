"""On pictures of one colour a DCT latent is one number per plane, so that every score is known in advance."""

import json
import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.model.tiny import tiny_batch, tiny_model
from vla_mot.batch import Batch
from vla_mot.evaluate.foresight import (
    NothingToForeseeError,
    _Sums,
    mean_future_latents,
    score_foresight,
    without_history,
)
from vla_mot.evaluate.foresight_report import METHODS, ForesightReport
from vla_mot.evaluate.intervals import resampled
from vla_mot.model.model import VlaMotModel

VIEWS = ("head", "gripper", "third")
DARK, BRIGHT = 64, 192


def grey(level: int, *shape: int) -> torch.Tensor:
    return torch.full((*shape, 3, 32, 32), level, dtype=torch.uint8)


def scene(past: int = DARK, present: int = DARK, future: int = BRIGHT) -> Batch:
    """Four samples in which every view turns from one grey to another; the third camera is absent."""
    batch = tiny_batch()
    images = torch.stack((grey(past, 4, 3), grey(present, 4, 3)), dim=2)
    seen = torch.tensor([True, True, False]).expand(4, 3)
    observation = replace(batch.observation, images=images, view_mask=seen)
    return replace(batch, observation=observation, future=grey(future, 4, 3), future_mask=seen)


def foresees(level: float) -> VlaMotModel:
    """A model that foresees one grey everywhere, whatever it sees."""
    model = tiny_model().eval()
    latent = model.encode_frames(torch.full((1, 1, 1, 3, 32, 32), level / 255))[0, 0, 0, :, 0, 0]
    with torch.no_grad():
        model.generation.out_proj.weight.zero_()
        model.generation.out_proj.bias.copy_(latent)
    return model


def score(
    model: VlaMotModel, *batches: Batch, episodes=(0, 0, 1, 2), mean=None, **options
) -> ForesightReport:
    mean = torch.zeros(3, 16, 4, 4) if mean is None else mean
    numbered = [(batch, torch.tensor(list(episodes)) + 10 * i) for i, batch in enumerate(batches)]
    return score_foresight(model, numbered, mean, VIEWS, **options)


def test_a_perfect_foresight_has_no_error():
    report = score(foresees(BRIGHT), scene())
    for view in ("head", "gripper"):
        for region in ("moving", "whole"):
            assert report.score(view, region, "foresight").mse.value == pytest.approx(0, abs=1e-9)
    assert report.score("head", "whole", "foresight").psnr.value > 60


def test_copying_costs_what_the_change_is():
    """A grey step of 128/255·2 in [−1, 1] is 8 times that in the DC coefficient, one of 16 channels."""
    copied = score(foresees(BRIGHT), scene()).score("head", "whole", "copy_last")
    assert copied.mse.value == pytest.approx((8 * 2 * 128 / 255) ** 2 / 16, rel=1e-4)
    assert copied.psnr.value == pytest.approx(-20 * math.log10(128 / 255), abs=1e-3)


def test_half_the_way_is_a_quarter_of_the_error():
    report = score(foresees((DARK + BRIGHT) / 2), scene())
    ratio = report.score("gripper", "moving", "copy_last").ratio
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((4.0, 4.0, 4.0), rel=1e-4)
    assert report.score("gripper", "moving", "foresight").ratio.value == 1.0
    assert report.score("gripper", "moving", "no_history").ratio.value == pytest.approx(
        1.0
    )  # it sees nothing


def test_the_training_mean_is_a_method():
    model = foresees(BRIGHT)
    middle = model.encode_frames(grey((DARK + BRIGHT) // 2, 1, 3, 1))[0, :, 0]
    report = score(model, scene(), mean=middle)
    assert report.score("head", "whole", "training_mean").mse.value == pytest.approx(
        report.score("head", "whole", "copy_last").mse.value / 4, rel=1e-4
    )


def test_only_what_moves_is_counted():
    """One 8×8 block of the head's picture changes: the moving cells are that one, of 16."""
    batch = scene(future=DARK)
    batch.future[:, 0, :, 8:16, 16:24] = BRIGHT
    report = score(foresees(DARK), batch)
    assert report.views == ("head",)  # nothing moves in the other
    moving, whole = (report.score("head", region, "copy_last").mse.value for region in ("moving", "whole"))
    assert moving == pytest.approx((8 * 2 * 128 / 255) ** 2 / 16, rel=1e-4)
    assert whole == pytest.approx(moving / 16, rel=1e-4)
    assert report.score("head", "moving", "foresight").psnr is None


def test_samples_without_movement_or_future_are_left_out():
    still, moving, cut_off = scene(future=DARK), scene(), scene(future=255)
    cut_off = replace(cut_off, future_mask=torch.zeros_like(cut_off.future_mask))
    model = foresees(DARK + 20)
    alone, mixed = score(model, moving), score(model, moving, still, cut_off)
    assert (mixed.samples, mixed.episodes) == (alone.samples, alone.episodes) == (4, 3)
    assert mixed.scores == alone.scores
    with pytest.raises(NothingToForeseeError, match="nothing moves by more than"):
        score(model, still)


def test_the_threshold_decides_what_moves():
    nudge = scene(future=DARK + 4)  # 8·2·4/255 in one of 16 channels: 0.063
    assert score(foresees(DARK), nudge, threshold=0.05).samples == 4
    with pytest.raises(ValueError, match="nothing moves"):
        score(foresees(DARK), nudge, threshold=0.07)


def test_the_interval_is_over_episodes():
    """Episode 0 changes a little and the others much: resampling episodes, not samples, spreads the mean."""
    batch = scene()
    batch.future[:2] = DARK + 40
    model = foresees(DARK)
    apart = score(model, batch, episodes=(0, 0, 1, 2)).score("head", "whole", "copy_last").mse
    same = score(model, batch, episodes=(0, 0, 0, 0)).score("head", "whole", "copy_last").mse
    assert apart.value == pytest.approx(same.value)
    assert apart.low < apart.value < apart.high
    assert math.isnan(same.low) and math.isnan(same.high), "one episode tells nothing about others"
    assert apart == score(model, batch, episodes=(0, 0, 1, 2)).score("head", "whole", "copy_last").mse


def test_a_view_that_moves_in_one_episode_has_an_interval_without_ends():
    batch = scene()
    batch.future[2:, 1] = DARK  # the gripper's picture stands still but in episode 0
    report = score(foresees(DARK), batch)
    assert math.isnan(report.score("gripper", "moving", "copy_last").mse.low)
    assert not math.isnan(report.score("head", "moving", "copy_last").mse.low)


def test_the_interval_is_that_of_resampled_episodes():
    """The arithmetic once more, draw by draw."""
    batch = scene()
    for row, level in enumerate((DARK + 40, DARK + 60, DARK + 80, BRIGHT)):
        batch.future[row] = level
    found = score(foresees(DARK), batch, seed=5).score("head", "whole", "copy_last").mse
    errors = np.array([40**2 + 60**2, 80**2, 128**2]) * (8 * 2 / 255) ** 2 / 16
    draws = resampled(3, seed=5)
    means = errors[draws].sum(1) / np.array([2, 1, 1])[draws].sum(1)
    ends = np.percentile(means, [2.5, 97.5], method="nearest")
    assert (found.low, found.high) == pytest.approx(tuple(ends), rel=1e-4)


def test_many_episodes_are_resampled_in_little_memory():
    """A resample is a count per episode, not a copy of its sums: 2000 copies of these would be 120 MB."""
    sums = _Sums(1)
    sums.by_episode = {episode: np.full((1, 15), episode + 1.0) for episode in range(500)}
    tracemalloc.start()
    try:
        assert sums.scores(["head"], seed=1)
        assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()


def test_history_is_scored_by_replacing_it():
    observation = tiny_batch().observation
    without = without_history(observation)
    assert torch.equal(without.images[:, :, 0], observation.images[:, :, 1])
    assert torch.equal(without.images[:, :, 1], observation.images[:, :, 1])
    report = score(tiny_model().eval(), tiny_batch())  # a model that does look at its history
    assert report.score("head", "whole", "no_history").mse != report.score("head", "whole", "foresight").mse


def test_the_mean_counts_real_futures_only():
    model = foresees(BRIGHT)
    dark, bright = scene(future=DARK), scene(future=BRIGHT)
    bright = replace(bright, future_mask=bright.future_mask & (torch.arange(4) < 2)[:, None])
    mean = mean_future_latents(model, [dark, bright])
    expected = model.encode_frames(grey(round(DARK + (BRIGHT - DARK) / 3), 1, 3, 1))[0, :, 0]
    assert torch.allclose(mean[:2], expected[:2], atol=0.05)
    assert torch.equal(mean[2], torch.zeros_like(mean[2]))  # never seen
    with pytest.raises(NothingToForeseeError, match="no real future frame"):
        mean_future_latents(model, [])


def test_pictures_are_kept_of_the_moments_with_most_movement(tmp_path):
    batch = scene(past=0)
    batch.future[0, 0, :, :16] = DARK  # less moves in the first sample of episode 0 than in its second
    report = score(foresees(BRIGHT - 10), batch, num_examples=2)
    assert [(e.episode, e.view) for e in report.examples] == [
        (0, "head"), (0, "gripper"), (1, "head"), (1, "gripper"),
    ]  # fmt: skip
    first = report.examples[0]
    for name, level in (("past", 0), ("present", DARK), ("future", BRIGHT), ("foreseen", BRIGHT - 10)):
        picture = getattr(first, name)
        assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
        assert np.abs(picture.astype(int) - level).max() <= 1, name
    report.save(tmp_path)
    again = ForesightReport.load(tmp_path)
    assert len(again.scores) == 2 * 2 * len(METHODS)
    assert again.scores == report.scores
    assert np.array_equal(again.examples[3].no_history, report.examples[3].no_history)


def test_scores_are_there_only_when_the_pictures_are(tmp_path):
    """Their file says that all of it is whole, so it is written last."""
    report = score(foresees(BRIGHT), scene())
    (tmp_path / "foresight.npz").mkdir()
    with pytest.raises(IsADirectoryError):
        report.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["foresight.npz"]
    assert ForesightReport.load(tmp_path) is None


def test_scores_of_before_can_be_read(tmp_path):
    """Files of older versions do not say whether their episodes were trained on."""
    report = score(foresees(BRIGHT), scene(), trained_on=True)
    report.save(tmp_path)
    assert ForesightReport.load(tmp_path).trained_on
    path = tmp_path / "foresight.json"
    told = json.loads(path.read_text())
    del told["trained_on"]
    path.write_text(json.dumps(told))
    assert not ForesightReport.load(tmp_path).trained_on


def test_an_unknown_score_is_a_key_error():
    with pytest.raises(KeyError, match="no score for 'third'"):
        score(foresees(BRIGHT), scene()).score("third", "whole", "foresight")

from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
import torch

from tests.data.conftest import toy_embodiment
from vla_mot.data import partial_statistics
from vla_mot.data.partial_statistics import Chunks, count_dataset
from vla_mot.data.source import Source, Tables
from vla_mot.data.statistics import compute_statistics, merge_partials
from vla_mot.errors import ConfigError
from vla_mot.robots.normalization import QUANTILES, FeatureStatistics


def naive(source, chunk_size, mode, episodes):
    """Every real step of every window, one at a time, in float64."""
    mask = np.array(source.embodiment.delta_mask)
    states, actions = [], []
    for episode in episodes:
        start, end = source.bounds[episode].tolist()
        for t in range(start, end):
            state = source.state[t].double().numpy()
            states.append(state)
            for step in range(t, min(t + chunk_size, end)):
                offset = np.where(mask, state[: len(mask)], 0.0) if mode == "delta" else 0.0
                actions.append(source.action[step].double().numpy() - offset)
    return np.stack(states), np.stack(actions)


def assert_those_of(feature: FeatureStatistics, rows: np.ndarray) -> None:
    assert feature.count == len(rows)
    np.testing.assert_allclose(feature.mean, rows.mean(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(feature.std, rows.std(0), rtol=1e-6)
    np.testing.assert_allclose(feature.min, rows.min(0), rtol=1e-6)
    np.testing.assert_allclose(feature.max, rows.max(0), rtol=1e-6)


@pytest.mark.parametrize("mode", ["delta", "abs"])
@pytest.mark.parametrize("chunk_size", [1, 5, 30])
@pytest.mark.parametrize("episodes", [None, [1, 3]])
def test_statistics_equal_a_naive_loop(source, mode, chunk_size, episodes):
    found = compute_statistics(source, chunk_size, mode, episodes)
    chosen = episodes or range(4)
    for rows, feature in zip(
        naive(source, chunk_size, mode, chosen), (found.state, found.action), strict=True
    ):
        assert_those_of(feature, rows)
        for name, share in QUANTILES.items():
            np.testing.assert_allclose(feature.quantiles[name], np.quantile(rows, share, axis=0), rtol=1e-6)
    found.require(embodiment="toy", action_mode=mode, chunk_size=chunk_size)
    (dataset,) = found.computed_on.datasets
    frames = sum(source.bounds.diff()[episode].item() for episode in chosen)
    counted = Tables.identify(source.root, source.embodiment)
    assert (dataset.name, dataset.content_hash) == (source.root.name, counted.digest)
    assert (dataset.frames, dataset.episodes) == (frames, len(chosen))


def one_go(parts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, std) by Chan's update written out, in the order in which the parts come."""
    count, mean, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for part in parts:
        n, centre = len(part), part.mean(0)
        shift = centre - mean
        squares = squares + ((part - centre) ** 2).sum(0) + shift**2 * (count * n / (count + n))
        mean = mean + shift * (n / (count + n))
        count += n
    return mean.float(), (squares / count).sqrt().float()


def test_training_on_one_dataset_keeps_its_bits(source):
    """Policies were trained with these sums: all first steps of the windows, all second steps, and so on."""
    found = compute_statistics(source, 7, "abs")
    last = torch.repeat_interleave(source.bounds[:, 1], source.bounds.diff()[:, 0])
    frames = torch.arange(source.num_frames)
    steps = [source.action[frames[frames + k < last] + k].double() for k in range(7)]
    for feature, parts in ((found.state, [source.state.double()]), (found.action, steps)):
        mean, std = one_go(parts)
        assert torch.equal(feature.mean, mean)
        assert torch.equal(feature.std, std)


def test_a_small_deviation_of_a_large_mean_survives(source):
    far = replace(source, action=(source.action * 1e-3).double() + 1e6)  # float32 has steps of 0.06 there
    rows = naive(far, 5, "abs", range(4))[1]
    np.testing.assert_allclose(compute_statistics(far, 5, "abs").action.std, rows.std(0), rtol=1e-5)


@pytest.mark.parametrize("block", [7, 64])
def test_blocks_change_nothing_but_rounding(source, monkeypatch, block):
    whole = compute_statistics(source, 5, "delta")
    monkeypatch.setattr(partial_statistics, "_BLOCK", block)
    blocks = compute_statistics(source, 5, "delta")
    for one, other in ((whole.state, blocks.state), (whole.action, blocks.action)):
        torch.testing.assert_close(one.std, other.std, rtol=1e-6, atol=0)
        assert torch.equal(one.max, other.max)
        assert all(torch.equal(one.quantiles[name], other.quantiles[name]) for name in QUANTILES)


def test_parts_merge_to_the_whole(source):
    """Episodes counted apart and merged, against float64 over all rows, in any order of the names."""
    chunks = Chunks("delta", 5)
    parts = [count_dataset(source, chunks, [episode]) for episode in range(4)]
    merged = merge_partials(toy_embodiment(), chunks, dict(zip("abcd", parts, strict=True)))
    other = merge_partials(toy_embodiment(), chunks, dict(zip("dbca", parts, strict=True)))
    for rows, one, two in zip(
        naive(source, 5, "delta", range(4)),
        (merged.state, merged.action),
        (other.state, other.action),
        strict=True,
    ):
        assert_those_of(one, rows)
        torch.testing.assert_close(one.std, two.std, rtol=1e-6, atol=0)
        for name, share in QUANTILES.items():
            value = one.quantiles[name].numpy()
            few = 1 / 7  # the shortest episode's rows are so far apart
            assert ((rows < value).mean(0) - few <= share).all()
            assert ((rows <= value).mean(0) + few >= share).all()
    assert [each.name for each in merged.computed_on.datasets] == list("abcd")
    assert merged.computed_on.content_hash == other.computed_on.content_hash
    fewer = merge_partials(toy_embodiment(), chunks, dict(zip("abc", parts[:3], strict=True)))
    assert fewer.computed_on.content_hash != merged.computed_on.content_hash


def test_the_same_parts_give_the_same_bits_however_they_are_listed(source):
    chunks = Chunks("abs", 5)
    parts = {name: count_dataset(source, chunks, [number]) for number, name in enumerate("abcd")}
    listed = [
        merge_partials(toy_embodiment(), chunks, {name: parts[name] for name in order})
        for order in ("abcd", "dcab")
    ]
    assert listed[0].to_dict() == listed[1].to_dict()


def test_a_large_dataset_outweighs_a_small_one(source):
    chunks = Chunks("abs", 1)
    small, large = count_dataset(source, chunks, [3]), count_dataset(source, chunks, [0, 1, 2])
    merged = merge_partials(toy_embodiment(), chunks, {"small": small, "large": large})
    total = small.frames + large.frames
    expected = (small.frames * small.state.moments.mean + large.frames * large.state.moments.mean) / total
    torch.testing.assert_close(merged.state.mean, expected.float())


def test_human_video_has_statistics_of_nothing(recording):
    watching = Source.open(recording.root, toy_embodiment(state=[], action=[]))
    chunks = Chunks("delta", 5)
    part = count_dataset(watching, chunks)
    found = merge_partials(toy_embodiment(), chunks, {"one": part, "two": part})
    assert found.state.count == 2 * watching.num_frames
    assert found.action.mean.shape == found.action.quantiles["q50"].shape == (0,)
    assert reduce(lambda a, b: a + b, [each.frames for each in found.computed_on.datasets]) == 120


def test_what_makes_no_statistics_is_refused(source):
    with pytest.raises(ConfigError, match=r"unknown action mode 'dleta'. Did you mean 'delta'\?"):
        compute_statistics(source, 5, "dleta")
    with pytest.raises(ConfigError, match="chunk_size must be at least 1, got 0"):
        compute_statistics(source, 0, "abs")
    with pytest.raises(ConfigError, match="at least one episode"):
        compute_statistics(source, 5, "abs", [])
    with pytest.raises(ConfigError, match="has 4 episodes; episode 4 was chosen"):
        compute_statistics(source, 5, "abs", [0, 4])


def test_normalized_windows_have_mean_zero_and_deviation_one(source):
    found = compute_statistics(source, 5, "delta")
    rows = torch.from_numpy(naive(source, 5, "delta", range(4))[1]).float()
    normal = found.action.normalize(rows)
    torch.testing.assert_close(normal.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std(0, unbiased=False), torch.ones(3), atol=1e-4, rtol=0)

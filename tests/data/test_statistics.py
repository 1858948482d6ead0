from dataclasses import replace

import numpy as np
import pytest
import torch

from vla_mot.data.statistics import compute_statistics
from vla_mot.errors import ConfigError


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


@pytest.mark.parametrize("mode", ["delta", "abs"])
@pytest.mark.parametrize("chunk_size", [1, 5, 30])
@pytest.mark.parametrize("episodes", [None, [1, 3]])
def test_statistics_equal_a_naive_loop(source, mode, chunk_size, episodes):
    found = compute_statistics(source, chunk_size, mode, episodes)
    for rows, feature in zip(
        naive(source, chunk_size, mode, episodes or range(4)), (found.state, found.action), strict=True
    ):
        assert feature.count == len(rows)
        np.testing.assert_allclose(feature.mean, rows.mean(0), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(feature.std, rows.std(0), rtol=1e-6)
        np.testing.assert_allclose(feature.min, rows.min(0), rtol=1e-6)
        np.testing.assert_allclose(feature.max, rows.max(0), rtol=1e-6)
    found.require(embodiment="toy", action_mode=mode, chunk_size=chunk_size)


def test_a_small_deviation_of_a_large_mean_survives(source):
    far = replace(source, action=(source.action * 1e-3).double() + 1e6)  # float32 has steps of 0.06 there
    rows = naive(far, 5, "abs", range(4))[1]
    np.testing.assert_allclose(compute_statistics(far, 5, "abs").action.std, rows.std(0), rtol=1e-5)


def test_what_makes_no_statistics_is_refused(source):
    with pytest.raises(ConfigError, match=r"unknown action mode 'dleta'. Did you mean 'delta'\?"):
        compute_statistics(source, 5, "dleta")
    with pytest.raises(ConfigError, match="chunk_size must be at least 1, got 0"):
        compute_statistics(source, 0, "abs")
    with pytest.raises(ConfigError, match="at least one episode"):
        compute_statistics(source, 5, "abs", [])


def test_normalized_windows_have_mean_zero_and_deviation_one(source):
    found = compute_statistics(source, 5, "delta")
    rows = torch.from_numpy(naive(source, 5, "delta", range(4))[1]).float()
    normal = found.action.normalize(rows)
    torch.testing.assert_close(normal.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std(0, unbiased=False), torch.ones(3), atol=1e-4, rtol=0)

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from vla_mot.errors import ConfigError
from vla_mot.robots.normalization import FeatureStatistics, Statistics, pad_last, summarize


def statistics(**changes) -> Statistics:
    feature = summarize([torch.randn(10, 3)])
    spec = {"embodiment": "toy", "action_mode": "delta", "chunk_size": 5, "state": feature, "action": feature}
    return Statistics(**(spec | changes))


def test_normalizing_equals_the_reference(goldens):
    golden = load_file(goldens / "processor" / "processor.safetensors")
    named = {name: golden[f"norm.{name}"] for name in ("mean", "std", "min", "max")}
    assert named["std"][2] == 0  # a dimension that never moved
    feature = FeatureStatistics(**named, count=4)
    normal = feature.normalize(golden["norm.x"])
    torch.testing.assert_close(normal, golden["norm.mean_std"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(feature.unnormalize(normal), golden["norm.mean_std_roundtrip"])


@given(st.integers(0, 2**32), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_unnormalizing_undoes_normalizing(seed, spread, centre):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(20, 4, generator=generator) * spread + centre
    feature = summarize([rows])
    # Relative to the larger of value and spread: that is what float32 keeps.
    tolerance = 1e-5 * max(abs(centre), spread)
    torch.testing.assert_close(feature.unnormalize(feature.normalize(rows)), rows, atol=tolerance, rtol=1e-5)


def test_a_summary_is_that_of_float64():
    rows = 1e4 + torch.randn(1000, 2)
    summary = summarize(rows.split((300, 0, 699, 1)))
    torch.testing.assert_close(summary.std, rows.double().std(0, unbiased=False).float())
    assert torch.equal(summary.max, rows.amax(0))
    assert summary.count == 1000
    with pytest.raises(ConfigError, match="no rows"):
        summarize([torch.empty(0, 2)])


def test_statistics_survive_json():
    mine = statistics()
    back = Statistics.from_dict(json.loads(json.dumps(mine.to_dict())))
    assert (back.embodiment, back.action_mode, back.chunk_size) == ("toy", "delta", 5)
    assert all(
        torch.equal(getattr(back.action, k), getattr(mine.action, k)) for k in ("mean", "std", "min", "max")
    )
    assert back.state.count == 10


@pytest.mark.parametrize(
    ("use", "message"),
    [
        ({"embodiment": "aloha"}, "embodiment 'toy', but 'aloha'"),
        ({"action_mode": "abs"}, "mode 'delta', but 'abs'"),
        ({"chunk_size": 50}, "chunk size 5, but 50"),
    ],
)
def test_statistics_of_another_use_are_refused(use, message):
    fitting = {"embodiment": "toy", "action_mode": "delta", "chunk_size": 5}
    statistics().require(**fitting)
    with pytest.raises(ConfigError, match=message):
        statistics().require(**(fitting | use))


def test_incomplete_statistics_name_what_is_missing():
    spec = statistics().to_dict()
    with pytest.raises(ConfigError, match="lack 'action_mode'"):
        Statistics.from_dict({key: value for key, value in spec.items() if key != "action_mode"})
    del spec["action"]["std"]
    with pytest.raises(ConfigError, match="statistics lack std"):
        Statistics.from_dict(spec)
    spec["action"]["std"] = [1.0]
    with pytest.raises(ConfigError, match="must have one shape"):
        Statistics.from_dict(spec)


def test_padding_adds_zeros_and_refuses_too_wide():
    assert pad_last(torch.ones(2, 3), 5, "state").tolist() == [[1, 1, 1, 0, 0]] * 2
    with pytest.raises(ConfigError, match="action has 6 dimensions, the model takes at most 5"):
        pad_last(torch.ones(6), 5, "action")

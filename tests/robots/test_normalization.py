import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from vla_mot.errors import ConfigError
from vla_mot.robots.normalization import (
    QUANTILES,
    CountedDataset,
    FeatureStatistics,
    Origin,
    Statistics,
    pad_last,
    summarize,
)


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


def test_what_is_not_known_is_not_written():
    """Statistics from before there were quantiles: the same bytes again."""
    told = statistics().to_dict()
    assert list(told) == ["embodiment", "action_mode", "chunk_size", "observation.state", "action"]
    assert list(told["action"]) == ["mean", "std", "min", "max", "count"]
    assert json.dumps(Statistics.from_dict(told).to_dict()) == json.dumps(told)


def test_quantiles_and_the_datasets_survive_json():
    feature = summarize([torch.randn(10, 3)])
    rows = {name: torch.rand(3) for name in QUANTILES}
    origin = Origin("abc", (CountedDataset("toy", "def", 60, 4), CountedDataset("other", "012", 7, 1)))
    mine = statistics(action=FeatureStatistics(**vars(feature) | {"quantiles": rows}), computed_on=origin)
    back = Statistics.from_dict(json.loads(json.dumps(mine.to_dict())))
    assert back.computed_on == origin
    assert back.state.quantiles == {}
    assert back.action.quantiles.keys() == rows.keys()
    assert all(torch.equal(back.action.quantiles[name], rows[name]) for name in rows)


def test_features_are_joined_with_the_quantiles_that_all_have():
    one, other = (summarize([torch.randn(10, width)]) for width in (3, 1))
    both = {"q01": torch.rand(3), "q99": torch.rand(3)}
    one = FeatureStatistics(**vars(one) | {"quantiles": both})
    other = FeatureStatistics(**vars(other) | {"quantiles": {"q99": torch.rand(1)}})
    joined = FeatureStatistics.joined([one, other])
    assert torch.equal(joined.std, torch.cat([one.std, other.std]))
    assert joined.quantiles.keys() == {"q99"}
    assert joined.quantiles["q99"].shape == (4,)
    assert FeatureStatistics.joined([]).mean.shape == (0,)


def test_a_feature_without_dimensions_is_normalized_too():
    nothing = summarize([torch.empty(7, 0), torch.empty(2, 0)])
    assert (nothing.count, nothing.mean.shape) == (9, (0,))
    assert nothing.normalize(torch.empty(5, 0)).shape == (5, 0)
    back = FeatureStatistics.from_dict(json.loads(json.dumps(nothing.to_dict())))
    assert back.std.shape == (0,)
    assert back.count == 9


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


@pytest.mark.parametrize(
    ("mode", "meant"), [("Delta", "delta"), ("absolute", "abs"), ("relative", None), ("", None)]
)
def test_an_unknown_action_mode_is_refused(mode, meant):
    """Whatever is not `delta` would act as absolute."""
    told = statistics().to_dict() | {"action_mode": mode}
    with pytest.raises(ConfigError) as caught:
        Statistics.from_dict(told)
    assert f"unknown action mode {mode!r}." in str(caught.value)
    assert (f"Did you mean '{meant}'?" in str(caught.value)) == (meant is not None)

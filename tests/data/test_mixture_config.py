import pytest

from vla_mot.data.mixture_config import Group, Override
from vla_mot.errors import ConfigError
from vla_mot.options import section


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"wieght": 1.0}, "unknown key 'data.groups.x.wieght'. Did you mean 'data.groups.x.weight'?"),
        ({"pattern": [], "weight": 1}, "pattern must name datasets, e.g. 'robotwin/*', got ()."),
        ({"pattern": "", "weight": 1}, "pattern must name datasets, e.g. 'robotwin/*', got ''."),
        ({"weight": 0}, "weight must be positive and at most 1e+15, got 0.0; leave the group out instead."),
        ({"weight": float("inf")}, "weight must be positive and at most 1e+15, got inf."),
        ({"weight": float("nan")}, "weight must be positive and at most 1e+15, got nan."),
        ({"weight": 1, "exponent": -1}, "exponent must lie in 0 … 10, got -1"),
        ({"weight": 1, "exponent": 1000}, "exponent must lie in 0 … 10, got 1000"),
        ({"weight": 1, "by": "frame"}, "Did you mean 'frames'?"),
        ({}, "data.groups.x.weight (a number) must be given"),
        ({"weight": 1, "declared": {"frames": 0}}, "declared.frames must be at least 1, got 0"),
    ],
)
def test_a_group_is_read_strictly(told, message):
    with pytest.raises(ConfigError) as caught:
        section(Group, "data.groups.x", {"pattern": "*"} | told)
    assert message in str(caught.value)


@pytest.mark.parametrize("share", [0.0, -1.0, float("inf"), float("nan")])
def test_a_share_is_a_positive_number(share):
    with pytest.raises(ConfigError, match=f"share must be positive and at most 1e.15, got {share}"):
        Override(share=share)

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from tests.composed import composed
from vla_mot.commands.settings import section
from vla_mot.commands.training_settings import training_config
from vla_mot.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    width: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    count: int
    rate: float = 0.5
    flag: bool = False
    place: Path | None = None
    mode: Literal["one", "two"] = "one"
    pair: tuple[int, int] = (1, 2)
    inner: Inner = field(default_factory=lambda: Inner(3))


def test_values_become_the_annotated_types():
    given = {"count": 2, "rate": 1, "place": "a/b", "pair": [3, 4], "inner": {"width": 5, "names": ["x"]}}
    assert section(Outer, "", given) == Outer(2, 1.0, False, Path("a/b"), "one", (3, 4), Inner(5, ("x",)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": "2"}, r"outer.count: expected a whole number, got '2' \(str\)"),
        ({"count": True}, r"outer.count: expected a whole number, got True \(bool\)"),
        ({"count": 2.0}, r"outer.count: expected a whole number, got 2.0 \(float\)"),
        ({"count": None}, r"outer.count: expected a whole number, got None"),
        ({"count": "???"}, "outer.count must be given"),
        ({}, r"outer.count \(a whole number\) must be given"),
        ({"count": 1, "rate": "fast"}, "outer.rate: expected a number, got 'fast'"),
        ({"count": 1, "flag": 1}, "outer.flag: expected true or false, got 1"),
        ({"count": 1, "mode": "tow"}, "outer.mode: 'tow'. Did you mean 'two'"),
        ({"count": 1, "pair": [1]}, "outer.pair: expected a list of 2 values"),
        ({"count": 1, "pair": [1, "x"]}, r"outer.pair\[1\]: expected a whole number"),
        (
            {"count": 1, "inner": {"width": 1, "nmes": []}},
            "unknown key 'outer.inner.nmes'. Did you mean 'outer.inner.names'",
        ),
        ({"count": 1, "inner": 3}, r"outer.inner: expected a group of keys \(width, names\), got 3"),
        ({"count": 1, "raet": 3}, "unknown key 'outer.raet'. Did you mean 'outer.rate'"),
    ],
)
def test_what_does_not_fit_is_named(values, message):
    with pytest.raises(ConfigError, match=message):
        section(Outer, "outer", values)


@pytest.mark.parametrize(
    ("overrides", "frames"),
    [
        ((), 6),
        (("foresight.offset_frames=3",), 3),
        (("foresight.offset_frames=null", "foresight.offset_seconds=0.4"), 4),
    ],
)
def test_the_offset_is_stated_in_frames_or_seconds(overrides, frames):
    plain = composed("posttrain", "data.root=x", "output=x", *overrides)
    assert training_config(plain).model.offset_frames == frames


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("foresight.offset_seconds=0.4",),
            "not both.*Set foresight.offset_frames or foresight.offset_seconds",
        ),
        (("foresight.offset_frames=null",), "in frames or in seconds"),
        (("foresight.offset_frames=null", "foresight.offset_seconds=0.45"), "4.5 frames at 10 fps"),
        (("foresight.offset_frames=two",), "foresight.offset_frames: expected a whole number"),
    ],
)
def test_an_offset_that_means_nothing_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        training_config(composed("posttrain", "data.root=x", "output=x", *overrides))


def test_an_embodiment_that_is_none_is_refused():
    plain = composed("posttrain", "data.root=x", "output=x")
    plain["embodiment"]["state"] = 3
    with pytest.raises(ConfigError, match=r"embodiment.state: expected a list, got 3 \(int\)"):
        training_config(plain)

"""Statistics as files: ours (a checkpoint's `stats.json`, or what `vla-mot data stats` writes), and the authors'.

ours      embodiment → action mode → what `Statistics.to_dict` gives
authors'  robot → feature → min, max, mean, std, count; action mode and chunk length are written nowhere
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_mot.errors import ConfigError, nearest
from vla_mot.robots.embodiment import Embodiment, Field
from vla_mot.robots.normalization import FeatureStatistics, Statistics
from vla_mot.robots.robot import Robot

_WRONG_KIND = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


def native_content(statistics: Iterable[Statistics]) -> dict[str, Any]:
    """The content of a file in our layout."""
    content: dict[str, Any] = {}
    for numbers in statistics:
        content.setdefault(numbers.embodiment, {})[numbers.action_mode] = numbers.to_dict()
    return content


def read_native(content: Mapping[str, Any]) -> list[Statistics]:
    """The inverse of `native_content`. Raises ConfigError for a part that is missing or stands in a wrong place."""
    found = []
    for name, modes in content.items():
        for mode, told in modes.items():
            numbers = Statistics.from_dict(told)
            numbers.require(embodiment=name, action_mode=mode, chunk_size=numbers.chunk_size)
            found.append(numbers)
    return found


def released_statistics(
    embodiment: Embodiment, features: Mapping[str, Any], action_mode: str, chunk_size: int
) -> Statistics:
    """Statistics of one robot in the authors' layout. action_mode, chunk_size: what they were computed with.

    Raises ConfigError for a feature that is missing (`lacking` names them) or incomplete.
    """
    if absent := lacking(embodiment, features):
        raise ConfigError(f"statistics of {embodiment.name!r} lack {', '.join(absent)}.")

    def joined(fields: tuple[Field, ...]) -> FeatureStatistics:
        return FeatureStatistics.joined([FeatureStatistics.from_dict(features[f.key]) for f in fields])

    return Statistics(
        embodiment=embodiment.name,
        action_mode=action_mode,
        chunk_size=chunk_size,
        state=joined(embodiment.state),
        action=joined(embodiment.action),
    )


def lacking(embodiment: Embodiment, features: Mapping[str, Any]) -> list[str]:
    """The embodiment's features of which the authors' layout holds no statistics."""
    return [f.key for f in (*embodiment.state, *embodiment.action) if f.key not in features]


@dataclass(frozen=True)
class StatisticsFile:
    """Statistics of some robots, read from a file by `load_statistics`.

    native: those of our layout. released: robot → feature → numbers of the authors', which were computed in the
    stated action mode with chunks of the stated length.
    """

    path: Path
    native: tuple[Statistics, ...] = ()
    released: Mapping[str, Any] | None = None
    stated: tuple[str, int] | None = None

    @property
    def embodiments(self) -> tuple[str, ...]:
        """Whose statistics these are, as the file calls them."""
        names = [numbers.embodiment for numbers in self.native] if self.released is None else self.released
        return tuple(dict.fromkeys(names))

    def pick(self, embodiment: Embodiment, action_mode: str, chunk_size: int) -> Statistics:
        """The statistics of this embodiment for chunks of this mode and length.

        Our layout has them under its name, the authors' under its name or an alias.
        Raises ConfigError when the file has none, or has them for another mode, chunk length or layout.
        """
        with _explained(self.path):
            found = list(self._of(embodiment))
            if not found:
                raise ConfigError(
                    f"it has no statistics of embodiment {embodiment.name!r}."
                    f"{nearest(embodiment.name, self.embodiments)} It has {', '.join(self.embodiments)}. "
                    "Compute them with `vla-mot data stats`."
                )
            numbers = next((each for each in found if each.action_mode == action_mode), found[0])
            numbers.require(embodiment=embodiment.name, action_mode=action_mode, chunk_size=chunk_size)
            return Robot(embodiment, numbers).statistics

    def _of(self, embodiment: Embodiment) -> Iterator[Statistics]:
        if self.released is None:
            yield from (numbers for numbers in self.native if numbers.embodiment == embodiment.name)
            return
        assert self.stated is not None, "load_statistics asks for what the authors' layout leaves unsaid"
        for name, features in self.released.items():
            if embodiment.is_called(name):
                yield released_statistics(embodiment, features, *self.stated)


def load_statistics(
    path: Path | str, action_mode: str | None = None, chunk_size: int | None = None
) -> StatisticsFile:
    """Read a file of either layout.

    action_mode, chunk_size: what a file of the authors' layout was computed with; ours says so itself.
    Raises ConfigError when the file is missing, damaged, of neither layout, or leaves unsaid what is not stated.
    """
    path = Path(path)
    content = _read(path)
    with _explained(path):
        if all(_holds(modes, "action_mode") for modes in content.values()) and content:
            return StatisticsFile(path, native=tuple(read_native(content)))
        if not content or not all(_holds(features, "mean") for features in content.values()):
            raise ConfigError(_neither(content))
    if action_mode is None or chunk_size is None:
        raise ConfigError(
            f"{path} is in the layout of the released checkpoints, which does not say for which action mode and chunk "
            "size its statistics were computed. State both, or compute statistics with `vla-mot data stats`."
        )
    return StatisticsFile(path, released=content, stated=(action_mode, chunk_size))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigError(f"statistics file {path} does not exist.{nearest(path.name, siblings)}")
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"statistics file {path} is damaged: {error}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"statistics file {path} holds a {type(content).__name__}, not an object.")
    return content


def _holds(content: Any, key: str) -> bool:
    """Whether `key` stands in every value of a mapping."""
    values = content.values() if isinstance(content, Mapping) else ()
    return bool(values) and all(isinstance(value, Mapping) and key in value for value in values)


def _neither(content: Mapping[str, Any]) -> str:
    if _holds(content, "mean"):
        return (
            "these are a LeRobot dataset's own statistics, of single frames and absolute actions. Chunks need their "
            "own: compute them with `vla-mot data stats`."
        )
    return (
        "expected embodiment → action mode → statistics (written by `vla-mot data stats`), or robot → feature → "
        f"min, max, mean, std (the released checkpoints' layout); found {', '.join(content) or 'nothing'}."
    )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Name the file in every error, be it what a value of the wrong kind leads to."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except _WRONG_KIND as error:
        raise ConfigError(f"{path} holds a value of the wrong kind ({error!r}).") from error

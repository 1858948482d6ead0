"""The embodiments that are known, by name or by what datasets call them: `conf/embodiment/*.yaml` and a user's own."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from vla_mot.conf_dir import conf_dir
from vla_mot.errors import ConfigError, nearest, unknown_name
from vla_mot.robots.embodiment import Embodiment, folded
from vla_mot.robots.generic import infer_embodiment

AUTO = "auto"
"""The embodiment that a dataset names by its robot type."""
GENERIC = "generic"
"""The one that is inferred from the dataset's features."""


def load_embodiment(path: Path | str) -> Embodiment:
    """Read an embodiment's YAML file. Raises ConfigError naming the file, and what in it does not fit."""
    path = Path(path)
    try:
        stamp = path.stat()
        return _read(path, stamp.st_mtime_ns, stamp.st_size)
    except OSError as error:
        beside = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ConfigError(
            f"embodiment file {path} cannot be read: {error.strerror}.{nearest(path.name, beside)}"
        ) from error


class _StrictLoader(yaml.SafeLoader):
    """YAML itself takes the last of several equal keys; of two lists of joints, which is meant nobody knows."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


@lru_cache(maxsize=256)
def _read(path: Path, changed: int, size: int) -> Embodiment:
    """Read a file once, however many datasets ask for it; again when it `changed`."""
    try:
        spec = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"embodiment file {path} is no YAML: {error}") from error
    try:
        embodiment = Embodiment.from_dict(spec)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    for spelling in (embodiment.name, *embodiment.aliases):
        if folded(spelling) in ("", AUTO, GENERIC):
            raise ConfigError(f"{path}: an embodiment cannot be called {spelling!r}; choose another name.")
    return embodiment


def catalog(extra: Sequence[Path] = ()) -> tuple[Embodiment, ...]:
    """Every known embodiment, in the order of their names.

    extra: a user's files, or folders of them; each replaces a packaged one of the same name.
    Raises ConfigError for a file that is none, and when one name or alias means two robots.
    """
    return _merged(tuple(Path(path) for path in extra))


def known_embodiments() -> tuple[Embodiment, ...]:
    """Those that come with the library, in the order of their names. Raises ConfigError naming a file that is none."""
    return catalog()


def find_embodiment(name: str, extra: Sequence[Path] = ()) -> Embodiment | None:
    """The embodiment of that name or alias, whatever their case, or None."""
    return next((e for e in catalog(extra) if e.is_called(name)), None)


def embodiment_of(info: Mapping[str, Any], wanted: str = AUTO, extra: Sequence[Path] = ()) -> Embodiment:
    """The embodiment with which a dataset is read.

    info: the content of its `meta/info.json`. wanted: `auto` (its robot type, by name or alias), `generic` (inferred
    from its features), or a name or alias. extra: see `catalog`.
    Raises ConfigError when that names no known robot, or nothing can be inferred.
    """
    if folded(wanted) == GENERIC:
        return infer_embodiment(info)
    if folded(wanted) != AUTO:
        found = find_embodiment(wanted, extra)
        if found is None:
            raise ConfigError(
                unknown_name("embodiment", wanted, [AUTO, GENERIC, *_spellings(catalog(extra))])
            )
        return found
    told = info.get("robot_type")
    found = find_embodiment(told, extra) if isinstance(told, str) else None
    if found is None:
        known = catalog(extra)
        said = f"unknown robot type {told!r}.{nearest(told, _spellings(known))}" if told else "no robot type"
        raise ConfigError(
            f"the dataset states {said}{'' if told else '.'} Known: {', '.join(e.name for e in known)}. Name one of "
            f"these (embodiment=…), describe the robot in a YAML file of your own, or say embodiment={GENERIC}, which "
            "reads it off the dataset's features; `vla-mot data inspect` shows how that fits."
        )
    return found


def _merged(extra: tuple[Path, ...]) -> tuple[Embodiment, ...]:
    own: dict[str, tuple[Embodiment, Path]] = {}
    for file in _files(extra):
        embodiment = load_embodiment(file)
        if embodiment.name in own:
            raise ConfigError(
                f"{own[embodiment.name][1]} and {file} both describe {embodiment.name!r}; give one."
            )
        own[embodiment.name] = (embodiment, file)
    everything = {e.name: (e, file) for e, file in _packaged()} | own
    _require_distinct(everything.values())
    return tuple(everything[name][0] for name in sorted(everything))


def _packaged() -> tuple[tuple[Embodiment, Path], ...]:
    files = sorted((conf_dir() / "embodiment").glob("*.yaml"))
    return tuple((load_embodiment(file), file) for file in files)


def _files(extra: Iterable[Path]) -> list[Path]:
    """Files in the order given; a folder stands for the YAML files in it. One that is given twice counts once."""
    found: dict[Path, Path] = {}
    for path in extra:
        inside = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
        if not inside:
            raise ConfigError(f"folder {path} holds no embodiment (*.yaml).")
        found |= {file.resolve(): file for file in inside}
    return list(found.values())


def _require_distinct(described: Iterable[tuple[Embodiment, Path]]) -> None:
    """Raise ConfigError when a spelling, whatever its case, means two robots."""
    meant: dict[str, tuple[Embodiment, Path]] = {}
    for embodiment, file in described:
        for spelling in (embodiment.name, *embodiment.aliases):
            other, where = meant.setdefault(folded(spelling), (embodiment, file))
            if other is not embodiment:
                raise ConfigError(
                    f"{spelling!r} means two robots: {other.name!r} ({where}) and {embodiment.name!r} ({file}). Take "
                    f"the alias out of your file, or name your robot {other.name!r} to replace that one."
                )


def _spellings(known: Iterable[Embodiment]) -> list[str]:
    return [spelling for e in known for spelling in (e.name, *e.aliases)]

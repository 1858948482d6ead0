"""From plain mappings (YAML, JSON, the command line) to frozen dataclasses, strictly.

Nothing unknown, nothing missing, nothing of a wrong type: every message names the key, what was expected and what
came. Every configuration of the library passes through here, whoever wrote it.
"""

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from vla_mot.errors import ConfigError, unknown_name

_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}


def section[T](cls: type[T], name: str, values: Any) -> T:
    """Build a dataclass from the mapping that stands under `name` in a configuration.

    Raises ConfigError for a key that it does not have, one that is missing, or a value of another type.
    """
    parts = fields(cast(Any, cls))
    known = [part.name for part in parts]
    if not isinstance(values, Mapping):
        raise ConfigError(_mismatch(name, f"a group of keys ({', '.join(known)})", values))
    prefix = f"{name}." if name else ""
    for key in values:
        if key not in known:
            raise ConfigError(unknown_name("key", f"{prefix}{key}", [f"{prefix}{k}" for k in known]))
    hints = get_type_hints(cls)
    needed = [p.name for p in parts if p.default is MISSING and p.default_factory is MISSING]
    missing = [f"{prefix}{key} ({describe(hints[key])})" for key in needed if key not in values]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} must be given; got only {', '.join(map(str, values)) or 'nothing'}."
        )
    return cls(**{key: fit(hints[key], f"{prefix}{key}", value) for key, value in values.items()})


def fit(kind: Any, name: str, value: Any) -> Any:
    """Return `value` as the annotated type `kind`. Raises ConfigError naming the key when it is of another."""
    origin, choices = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in choices:
            return None
        lists = [choice for choice in choices if get_origin(choice) is tuple]
        if lists and isinstance(value, list | tuple):
            return fit(lists[0], name, value)
        return fit(next(c for c in choices if c is not type(None)), name, value)
    if origin is Literal:
        if value not in choices:
            raise ConfigError(unknown_name(f"value for {name}:", str(value), map(str, choices)))
        return value
    if origin is tuple:
        return _tuple(choices, name, value)
    if is_dataclass(kind):
        return value if isinstance(value, cast(type, kind)) else section(cast(type, kind), name, value)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(_mismatch(name, describe(kind), value))
        return _mapping(choices, name, value)
    return _scalar(kind, name, value)


def at_least(least: float, values: Mapping[str, float]) -> None:
    """Raise ConfigError for the first of the named values that is smaller than `least`, or no number."""
    for name, value in values.items():
        if not value >= least:
            raise ConfigError(f"{name} must be at least {least:g}, got {value}.")


def within(least: float, most: float, values: Mapping[str, float]) -> None:
    """Raise ConfigError for the first of the named values that lies outside, or is no number."""
    for name, value in values.items():
        if not least <= value <= most:
            raise ConfigError(f"{name} must lie in {least:g} … {most:g}, got {value}.")


def describe(kind: Any) -> str:
    """An annotated type in a user's words, e.g. `a whole number`."""
    origin, choices = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return describe(next(c for c in choices if c is not type(None)))
    if origin is Literal:
        return f"one of {', '.join(map(str, choices))}"
    if origin is tuple:
        return "a list"
    if is_dataclass(kind) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return "a group of keys"
    return _NAMES.get(kind, getattr(kind, "__name__", str(kind)))


def _scalar(kind: type, name: str, value: Any) -> Any:
    right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not right:
        raise ConfigError(_mismatch(name, describe(kind), value))
    return value


def _mapping(kinds: tuple[Any, ...], name: str, value: Mapping[Any, Any]) -> dict[Any, Any]:
    """Keys of the type that is annotated, so that YAML's `1:` is the name it was meant to be; values where checked."""
    of_keys, of_values = kinds if len(kinds) == 2 else (Any, Any)
    found: dict[Any, Any] = {}
    for given, item in value.items():
        key = given if of_keys is Any else fit(of_keys, f"the name {given!r} in {name}", given)
        if key in found:
            raise ConfigError(f"{name}: {key!r} is given twice.")
        found[key] = fit(of_values, f"{name}.{key}", item) if is_dataclass(of_values) else item
    return found


def _tuple(kinds: tuple[Any, ...], name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(_mismatch(name, "a list", value))
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ConfigError(_mismatch(name, f"a list of {len(kinds)} values", value))
    return tuple(
        fit(kind, f"{name}[{place}]", item)
        for place, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def _mismatch(name: str, expected: str, value: Any) -> str:
    return f"{name}: expected {expected}, got {value!r} ({type(value).__name__})."

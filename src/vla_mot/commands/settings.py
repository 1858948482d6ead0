"""From composed configuration to the library's frozen dataclasses: `vla_mot.options`, and what Hydra adds to it."""

from collections.abc import Mapping
from typing import Any

from vla_mot import options
from vla_mot.errors import ConfigError

REQUIRED = "???"  # how a configuration file says that a value must be given


def section[T](cls: type[T], name: str, values: Any) -> T:
    """`options.section` of composed configuration, in which `???` stands for a value that must be given.

    Raises ConfigError naming the key that is not given, unknown, or of another type.
    """
    _require_given(name, values)
    return options.section(cls, name, values)


def _require_given(name: str, values: Any) -> None:
    if isinstance(values, Mapping):
        for key, value in values.items():
            _require_given(f"{name}.{key}" if name else str(key), value)
    elif values == REQUIRED:
        raise ConfigError(f"{name} must be given: write {name}=….")

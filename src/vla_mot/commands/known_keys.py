"""Which keys a composed configuration has, and what is said about one that it has not."""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, Node, OmegaConf

from vla_mot.errors import ConfigError, nearest


def has(config: DictConfig, key: str) -> bool:
    """Whether a dotted key is one of the configuration."""
    try:
        check_key(key, config)
    except ConfigError:
        return False
    return True


def check_key(key: str, config: DictConfig) -> None:
    """Raise ConfigError unless the dotted `key` is one of the configuration."""
    node: Any = config
    parts = key.split(".")
    for depth, part in enumerate(parts):
        known = _names(node)
        if part not in known:
            parent = ".".join(parts[:depth])
            nothing = isinstance(node, Node) and node._is_none()
            whole = f" {parent} is null: give it whole, '{parent}={{{part}: …}}'." if nothing else ""
            raise ConfigError(unknown_key(key, parent, known, config) + whole)
        node = node._get_node(part)
        if isinstance(node, DictConfig) and (node._is_none() or node._is_missing()):
            return


def check_inside(key: str, value: Any, config: DictConfig) -> None:
    """Raise ConfigError unless a value in braces names keys that are there: it changes these, and takes none away."""
    node = OmegaConf.select(config, key)
    if not isinstance(value, dict) or not isinstance(node, DictConfig):
        return
    for name, inner in value.items():
        if name not in (known := _names(node)):
            raise ConfigError(
                unknown_key(f"{key}.{name}", key, known, config)
                + f" Braces change what a preset says; '+{key}.{name}=…' adds to it, ~{key}.<name> takes away."
            )
        check_inside(f"{key}.{name}", inner, config)


def _names(node: Any) -> list[str]:
    """Of its keys: `in` overlooks those that must be given."""
    return [str(key) for key in node] if isinstance(node, DictConfig) else []


def check_top_level(config: DictConfig, plain: DictConfig) -> None:
    """Raise ConfigError for a top-level key that the command, `plain` without any override, does not have."""
    for key in config:
        if key not in list(plain):
            raise ConfigError(unknown_key(str(key), "", list(map(str, plain)), plain))


def unknown_key(key: str, parent: str, known: list[str], config: DictConfig) -> str:
    """The message: the nearest key of the whole configuration, and those that stand where this one was looked for."""
    here = sorted(f"{parent}.{name}" if parent else name for name in known)
    paths = list(_paths(config))
    same_word = [path for path in paths if path.split(".")[-1] == key.split(".")[-1]]
    return f"unknown key {key!r}.{nearest(key, same_word) or nearest(key, paths)} Known: {', '.join(here) or 'none'}."


def _paths(node: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a configuration."""
    for key in node if isinstance(node, DictConfig) and not node._is_none() else ():
        child = node._get_node(key)
        yield prefix + str(key)
        if isinstance(child, DictConfig):
            yield from _paths(child, f"{prefix}{key}.")

"""Hydra around a command: arguments are checked first, so that a mistake gets a sentence and not a stack.

The check finds unknown presets and keys by itself, with the nearest name; then `hydra.main` composes and runs, so
that multirun, launchers and `--config-dir` work as Hydra's documentation says.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import hydra
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vla_mot.commands import launching
from vla_mot.commands.folders import CONFIG_NAME, read_config
from vla_mot.commands.known_keys import check_inside, check_key, check_top_level, has, unknown_key
from vla_mot.commands.manual import Command
from vla_mot.commands.resume import AUTO
from vla_mot.conf_dir import conf_dir
from vla_mot.errors import ConfigError, unknown_name

Task = Callable[[dict[str, Any], list[str]], None]
"""(resolved configuration, the overrides that were given) → None."""

_VERSION_BASE = "1.3"
_FREE = "hydra"  # Hydra's own keys are left to Hydra


def run_command(command: Command, arguments: list[str], task: Task) -> None:
    """Compose the command's configuration and run `task` on it, once or, with `--multirun`, many times.

    Raises ConfigError for an unknown key or preset, a value that cannot be read, or a required key without value.
    """
    options = _parser(command).parse_intermixed_args(arguments)
    options.overrides = [spelled_out(command, word) for word in options.overrides]
    overlay = _overlay(options.config_dir)
    options.overrides = _with_keys_of_the_run(command.config, options.overrides, overlay)
    parsed = _parsed(options.overrides)
    launcher = launching.chosen(parsed, _folders(overlay), multirun=options.multirun)
    check_overrides(command.config, options.overrides, overlay, multirun=options.multirun)
    if options.multirun:
        options.overrides += launching.additions(parsed, command.config, launcher=launcher)

    def run_once(config: DictConfig) -> None:
        plain = _resolved(config)
        if HydraConfig.get().mode is RunMode.MULTIRUN and plain.get("output") is not None:
            plain["output"] = HydraConfig.get().runtime.output_dir
        launching.become_rank()
        task(plain, list(HydraConfig.get().overrides.task))

    with _argv([f"vla-mot {command.name}", *_ordered(options)]), launching.submitting(launcher):
        hydra.main(version_base=_VERSION_BASE, config_path=str(conf_dir()), config_name=command.config)(
            run_once
        )()


def spelled_out(command: Command, word: str) -> str:
    """A word as Hydra is to read it: `path` → `root='path'`, `embodiment=x` → `embodiment.name=x`."""
    key, equals, value = word.partition("=")
    if not equals and command.positional and not word.startswith(("+", "~")):
        return f"{command.positional}={_quoted(word)}"
    return f"{dict(command.short).get(key, key)}{equals}{value}"


def _quoted(text: str) -> str:
    """As Hydra's grammar reads any text: a folder's name, with all that is a sign of its own there."""
    return QuotedString(text, Quote.single).with_quotes()


def check_overrides(
    name: str, overrides: list[str], overlay: Path | None = None, *, multirun: bool = False
) -> None:
    """Raise ConfigError for the first override that names nothing: an unknown preset, group or key.

    An added key (`+train.…`) must at least lie in a group that the command has, and so must those of a preset.
    name: the command's file in conf/. overlay: the folder of `--config-dir`.
    """
    parsed = _parsed(overrides)
    folders = _folders(overlay)
    groups = _groups(name)
    for override in parsed:
        if _is_group(override, groups):
            _check_preset(override, folders)
    presets = [o.input_line for o in parsed if _is_group(o, groups) and not o.is_sweep_override()]
    plain = _composed(name, [], None)
    config = _composed(name, presets, overlay)
    check_top_level(config, plain)
    for override in parsed:
        if override.is_sweep_override() and _is_group(override, groups):
            for choice in override.sweep_string_iterator():
                swept = _composed(name, [*presets, f"{override.key_or_group}={choice}"], overlay)
                check_top_level(swept, plain)
    for override in parsed:
        if _is_group(override, groups) or _is_hydras(override):
            continue
        top = override.key_or_group.split(".")[0].split("/")[0]
        if override.type is OverrideType.CHANGE:
            check_key(override.key_or_group, config)
            check_inside(override.key_or_group, override.value(), config)
        elif not override.is_delete() and top not in list(
            plain
        ):  # `in plain` overlooks keys that must be given
            raise ConfigError(unknown_key(override.key_or_group, "", list(map(str, plain)), plain))
    if multirun:  # values are composed for each run by itself
        _composed(name, [*presets, *(o.input_line for o in parsed if _is_hydras(o))], overlay)
        return
    sweeps = [o.input_line for o in parsed if o.is_sweep_override()]
    if sweeps:
        raise ConfigError(
            f"{sweeps[0]!r} lists several values: add --multirun for one run each, or write [a,b]."
        )
    _composed(name, overrides, overlay)


def _with_keys_of_the_run(name: str, overrides: list[str], overlay: Path | None) -> list[str]:
    """The overrides; keys of the run in `resume` that no preset given here has are added to what is composed."""
    parsed = _parsed(overrides)
    folder = next((override.value() for override in parsed if override.key_or_group == "resume"), None)
    if not isinstance(folder, str) or folder == AUTO or not (Path(folder) / CONFIG_NAME).is_file():
        return overrides
    groups, run = _groups(name), OmegaConf.create(read_config(Path(folder)))
    presets = [o for o in parsed if _is_group(o, groups) and not o.is_sweep_override()]
    for preset in presets:
        _check_preset(preset, _folders(overlay))
    config = _composed(name, [preset.input_line for preset in presets], overlay)

    def only_there(override: Override) -> bool:
        key = override.key_or_group
        changes = override.type is OverrideType.CHANGE and not _is_group(override, groups)
        return changes and has(run, key) and not has(config, key)

    return [f"+{word}" if only_there(o) else word for word, o in zip(overrides, parsed, strict=True)]


def _folders(overlay: Path | None) -> list[Path]:
    """Where presets lie."""
    return [conf_dir(), *([overlay] if overlay else [])]


def _parsed(overrides: list[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            parsed += parser.parse_overrides([text])
        except HydraException as error:
            reason = str(error).split("\n", maxsplit=1)[0]
            raise ConfigError(f"{text!r} is no key=value ({reason}).") from error
    return parsed


def _is_group(override: Override, groups: set[str]) -> bool:
    return override.key_or_group in groups


def _is_hydras(override: Override) -> bool:
    return override.key_or_group.split(".")[0].split("/")[0] == _FREE


def _groups(name: str) -> set[str]:
    """The preset groups that this command composes: the entries of its defaults list."""
    defaults = yaml.safe_load((conf_dir() / f"{name}.yaml").read_text())["defaults"]
    return {str(group) for entry in defaults if isinstance(entry, dict) for group in entry}


def _check_preset(override: Override, folders: list[Path]) -> None:
    group, value = override.key_or_group, override.value()
    if not isinstance(value, str) or override.is_delete():
        return
    place = group.split("@")[0]
    known = {path.stem for folder in folders for path in (folder / place).glob("*.yaml")}
    if value not in known:
        raise ConfigError(f"{unknown_name(f'{place} preset', value, known)} Presets lie in conf/{place}/.")


def _composed(name: str, overrides: list[str], overlay: Path | None) -> DictConfig:
    search = [f"hydra.searchpath=[{_quoted(f'file://{overlay}')}]"] if overlay else []
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base=_VERSION_BASE):
            return compose(name, [*overrides, *search])
    except yaml.YAMLError as error:
        raise ConfigError(f"a preset is no valid YAML: {error}") from error  # its mark names file and line
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        cause = f"\n{error.__cause__}" if isinstance(error.__cause__, OmegaConfBaseException) else ""
        raise ConfigError(f"the configuration cannot be composed: {error}{cause}") from error


def _resolved(config: DictConfig) -> dict[str, Any]:
    """Plain values, with interpolations resolved; required keys that are still missing stay `???`."""
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration cannot be resolved: {error}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _overlay(folder: str | None) -> Path | None:
    if folder is None:
        return None
    if not Path(folder).is_dir():
        raise ConfigError(
            f"--config-dir {folder} is no folder; give the folder that holds experiment/, model/, …."
        )
    return Path(folder).resolve()


@contextmanager
def _argv(words: list[str]) -> Iterator[None]:
    """`hydra.main` reads `sys.argv`."""
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before


def _ordered(options: argparse.Namespace) -> list[str]:
    """The arguments again, options first: Hydra's own parser wants all overrides in one piece."""
    named = {"--config-dir": options.config_dir, "--cfg": options.cfg}
    switches = {"--resolve": options.resolve, "--multirun": options.multirun}
    words = [word for name, value in named.items() if value is not None for word in (name, value)]
    return [*words, *(name for name, is_on in switches.items() if is_on), *options.overrides]


class _Parser(argparse.ArgumentParser):
    """argparse, but its errors are ours."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. See `{self.prog} --help`.")


def _parser(command: Command) -> _Parser:
    """The part of Hydra's command line that is passed on to it."""
    parser = _Parser(prog=f"vla-mot {command.name}", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true")
    return parser

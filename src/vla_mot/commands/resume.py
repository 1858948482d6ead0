"""Which configuration a resumed run has: its own, with the few changes that leave it the same run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vla_mot.commands.folders import CONFIG_NAME, read_config
from vla_mot.errors import ConfigError
from vla_mot.options import fit

AUTO = "auto"
"""`resume=auto`: continue the run in `output` if there is one, else begin it."""
CHANGEABLE = (
    "train.steps",
    "train.log_every",
    "train.val_every",
    "train.save_every",
    "train.device",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.keep_best",
    "train.save_async",
    "train.parallel.strategy",
    "train.parallel.shard_ranks",
    "train.parallel.micro_batch",
    "train.parallel.accumulate",
    "train.parallel.compile",
    "train.parallel.recompute",
    "train.safety.not_finite",
    "train.safety.skip_steps",
    "train.safety.spike",
    "train.safety.stuck_seconds",
    "train.val_open_loop",
    "train.val_pictures",
    "train.log.writers",
    "train.log.project",
    "train.log.name",
    "train.log.offline",
    "train.log.utilisation",
    "data.root",
    "data.embodiments",
    "data.statistics",
    "data.cache",
    "data.cache_limit_gib",
    "data.frames",
    "data.prepare",
    "data.decoder",
    "data.workers",
    "data.most_open",
    "data.skip_broken",
    "sampler.num_steps",
    "sampler.solver",
    "sampler.n_action_steps",
)
"""What may differ; files because they may have moved (what datasets, robots and statistics say is compared). How
pictures are read, and by how many workers, decides no sample of whole data, as long as the workers share the shards."""
_LOCAL = ("output", "resume")

Changes = dict[str, tuple[Any, Any]]
"""Dotted key → (value of the run, value asked for)."""


def continues(config: Mapping[str, Any]) -> Path | None:
    """The folder of the run that is to be continued, or None where a run begins."""
    if config["resume"] != AUTO:
        return fit(Path | None, "resume", config["resume"])
    folder = fit(Path, "output", config["output"])
    return folder if (folder / CONFIG_NAME).is_file() else None


def resumed_config(
    folder: Path, composed: Mapping[str, Any], overrides: list[str]
) -> tuple[dict[str, Any], Changes]:
    """Return the configuration to go on with, and in what it differs from the run's own.

    composed: what the command line composes to; overrides: what was written on it. Only keys that were written count,
    unless a preset is among them, which speaks for every key.
    Raises CheckpointError when `folder` is no run, ConfigError when a difference would make it another run.
    """
    stored = read_config(folder)
    if any("/" in key or not _leaf(key, composed) for key in _keys(overrides)):
        asked = dict(composed)
    else:
        asked = _with(
            stored, {key: OmegaConf.select(OmegaConf.create(composed), key) for key in _keys(overrides)}
        )
    for local in _LOCAL:
        _require_same_folder(local, folder, composed, overrides)
        asked[local] = stored.get(local)
    changes = differences(stored, asked)
    fixed = {key: pair for key, pair in changes.items() if key not in CHANGEABLE}
    if fixed:
        listed = "; ".join(
            f"{key} is {before!r} there, {now!r} was asked" for key, (before, now) in fixed.items()
        )
        raise ConfigError(
            f"{folder} cannot be resumed with another configuration: {listed}. Leave that out (a resumed run keeps its "
            f"own), or start a new run with init_from={folder}. May differ: {', '.join(CHANGEABLE)}."
        )
    return asked, changes


def _keys(overrides: list[str]) -> list[str]:
    names = [text.split("=", maxsplit=1)[0].lstrip("+~") for text in overrides]
    return [name for name in names if name not in _LOCAL]


def _leaf(key: str, composed: Mapping[str, Any]) -> bool:
    node: Any = composed
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return not isinstance(node, Mapping)


def _with(stored: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    config = OmegaConf.create(dict(stored))
    for key, value in values.items():
        OmegaConf.update(config, key, value)
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _require_same_folder(key: str, folder: Path, composed: Mapping[str, Any], overrides: list[str]) -> None:
    given = composed.get(key)
    if (
        any(text.split("=")[0] == key for text in overrides)
        and Path(str(given)).resolve() != folder.resolve()
    ):
        raise ConfigError(f"{key}={given} differs from resume={folder}; a resumed run stays in its folder.")


def differences(before: Any, now: Any, prefix: str = "") -> Changes:
    """Compare two configurations leaf by leaf."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        found: Changes = {}
        for key in [*before, *(key for key in now if key not in before)]:
            found |= differences(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else str(key))
        return found
    return {} if before == now else {prefix: (before, now)}

"""Who hears of a run besides its own files: TensorBoard, Weights & Biases, trackio.

All get the same numbers under `<kind>/<name>`, and the pictures. What a resumed run computes again after a kill is
written again: TensorBoard drops the earlier values, the other two show both at the same step.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np

from vla_mot.errors import ConfigError
from vla_mot.train.config import LogConfig

_EXTRAS = {"tensorboard": "lerobot", "wandb": "tracking", "trackio": "tracking"}
_ID = "wandb_id"
"""In the run's folder: under which name W&B knows the run, so that a resumed one goes on there."""
_NAME = "trackio_name"
"""The same for trackio, which knows runs by nothing but the name that is shown."""


class Writer(Protocol):
    """Takes numbers and pictures of optimizer steps."""

    def numbers(self, kind: str, step: int, numbers: Mapping[str, float]) -> None: ...
    def picture(self, step: int, picture: np.ndarray) -> None: ...
    def close(self) -> None: ...


def require_writers(config: LogConfig) -> None:
    """Raise ConfigError when the package of a writer is not installed."""
    for name in config.writers:
        if find_spec(name) is None:
            raise ConfigError(
                f"train.log.writers lists {name}, which is not installed here: pip install "
                f"'vla-mot[{_EXTRAS[name]}]', or take it out of the list."
            )


def open_writers(config: LogConfig, run: Path, from_step: int, described: Mapping[str, Any]) -> list[Writer]:
    """Open what is asked for. run: the run's folder. from_step: where it goes on. described: its configuration.

    Raises ConfigError when a package is not installed, or W&B lets nobody in.
    """
    require_writers(config)
    makers: dict[str, Callable[[LogConfig, Path, int, Mapping[str, Any]], Writer]] = {
        "tensorboard": TensorBoard,
        "wandb": Wandb,
        "trackio": Trackio,
    }
    return [makers[name](config, run, from_step, described) for name in config.writers]


class TensorBoard:
    """Event files in `<run>/tensorboard/`."""

    def __init__(self, config: LogConfig, run: Path, from_step: int, described: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Also of 0: a run that was killed before its first saved step has told of steps that come again.
        self._writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=from_step + 1)

    def numbers(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(f"{kind}/{name}", float(value), step)

    def picture(self, step: int, picture: np.ndarray) -> None:
        self._writer.add_image("foresight", picture, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases; offline, in `<run>/wandb/` alone."""

    def __init__(self, config: LogConfig, run: Path, from_step: int, described: Mapping[str, Any]) -> None:
        self._package: Any = import_module("wandb")
        known = run / _ID
        resumed = known.is_file()
        try:
            self._run = self._package.init(
                project=config.project,
                name=config.name or run.resolve().name,
                dir=str(run),
                id=known.read_text().strip() if resumed else None,
                resume="allow" if resumed and not config.offline else None,
                mode="offline" if config.offline else None,
                config=dict(described),
                settings=self._package.Settings(console="off", silent=config.offline),
            )
        except self._package.Error as error:
            raise ConfigError(
                f"wandb does not start ({error}). Log in with `wandb login`, or set train.log.offline=true."
            ) from error
        known.write_text(self._run.id + "\n")
        # W&B drops what is logged for a step behind its newest, as a resumed run may: an axis of our own has no order.
        self._run.define_metric("*", step_metric="step")

    def numbers(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({"step": step} | {f"{kind}/{name}": float(value) for name, value in numbers.items()})

    def picture(self, step: int, picture: np.ndarray) -> None:
        self._run.log({"step": step, "foresight": self._package.Image(picture)})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of trackio, in its own folder on this machine (the variable TRACKIO_DIR)."""

    def __init__(self, config: LogConfig, run: Path, from_step: int, described: Mapping[str, Any]) -> None:
        self._package: Any = import_module("trackio")
        known = run / _NAME
        if not (resumed := known.is_file()):  # the runs of a sweep are all called 0, 1, …
            known.write_text(f"{config.name or run.resolve().name}-{uuid4().hex[:8]}\n")
        self._run = self._package.init(
            project=config.project,
            name=known.read_text().strip(),
            config=dict(described),
            resume="allow" if resumed else "never",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def numbers(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({f"{kind}/{name}": float(value) for name, value in numbers.items()}, step=step)

    def picture(self, step: int, picture: np.ndarray) -> None:
        self._run.log({"foresight": self._package.Image(picture)}, step=step)

    def close(self) -> None:
        self._package.finish()

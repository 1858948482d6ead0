"""`vla-mot convert`: a checkpoint into another layout or dtype."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from vla_mot.commands import folders
from vla_mot.commands.console import console, show_library_log
from vla_mot.commands.opening import Opening
from vla_mot.commands.repositories import locate
from vla_mot.commands.settings import section
from vla_mot.hub.checkpoint import Checkpoint
from vla_mot.hub.files import read_json
from vla_mot.hub.native import TRAINING_FILE, save_policy
from vla_mot.hub.released import save_released
from vla_mot.hub.unpickle import is_pickled, unpickle
from vla_mot.infer.golden import record_golden
from vla_mot.infer.policy import Policy
from vla_mot.model.model import VlaMotModel

log = logging.getLogger(__name__)

_CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(Opening):
    """See conf/convert.yaml."""

    output: Path
    layout: Literal["native", "released"] = "native"
    dtype: Literal["float32", "bfloat16"] | None = None
    allow_pickle: bool = False


def run(config: dict[str, Any], overrides: list[str]) -> None:
    """The command. What is written appears under `output` when it is whole."""
    show_library_log()
    wanted = section(ConvertConfig, "", config)
    folders.require_unused(wanted.output)
    with _opened(wanted) as found:
        dtype = getattr(torch, wanted.dtype) if wanted.dtype else None
        model = found.load(dtype=dtype)
        spec = replace(found.spec, dtype=wanted.dtype) if wanted.dtype else found.spec
        with folders.whole(wanted.output) as folder:
            _write(folder, wanted.layout, replace(found, spec=spec), model)
    console.print(f"{wanted.checkpoint} ({found.layout}) → {wanted.output} ({wanted.layout})")


@contextmanager
def _opened(wanted: ConvertConfig) -> Iterator[Checkpoint]:
    """The checkpoint; a pickled one, for whoever insists, by way of a temporary folder."""
    place = locate(wanted.checkpoint)
    if not (wanted.allow_pickle and isinstance(place, Path) and is_pickled(place)):
        yield wanted.open()
        return
    with TemporaryDirectory(prefix="vla-mot-") as folder:
        log.warning("%s: its weights are pickled; only tensors are read of it", place)
        unpickle(place, Path(folder))
        yield replace(wanted, checkpoint=folder).open()


def _write(folder: Path, layout: str, found: Checkpoint, model: VlaMotModel) -> None:
    """Write the checkpoint, and what its folder says of how it was made, where the layout has a place for it."""
    card, training = found.folder / _CARD, found.folder / TRAINING_FILE
    recorded = read_json(training) if training.is_file() and found.layout == "native" else None
    if layout == "released":
        save_released(folder, found.spec, model.state_dict())
        if recorded is not None:
            log.warning("%s is left out: the authors' layout has no place for it", TRAINING_FILE)
    else:
        golden = record_golden(Policy(model, found.spec))
        save_policy(folder, found.spec, model.state_dict(), golden=golden, training=recorded)
    if card.is_file():
        shutil.copyfile(card, folder / _CARD)

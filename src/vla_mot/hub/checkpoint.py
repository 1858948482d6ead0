"""Opens whatever a user names: a folder or a Hub repository, in our layout or in the authors'."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.hub import native, released
from vla_mot.hub.conventions import require_conventions
from vla_mot.hub.dtypes import expected_dtypes
from vla_mot.hub.files import read_json
from vla_mot.hub.native import load_model
from vla_mot.hub.released_architecture import read_architecture
from vla_mot.hub.released_names import ReleasedNames
from vla_mot.hub.remote import fetch
from vla_mot.hub.spec import TYPE, PolicySpec
from vla_mot.hub.tensors import Rename, Weights, load_weights, same_name
from vla_mot.model.model import VlaMotModel
from vla_mot.robots.actions import require_action_mode


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers and configuration were read, and whose weights were not yet.

    layout: `native`, or the authors' `qwena1` or `interna1`.
    """

    folder: Path
    layout: Literal["native", "qwena1", "interna1"]
    spec: PolicySpec
    weights: Weights

    def load(self, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> VlaMotModel:
        """Load the weights, one tensor at a time. Raises CheckpointError naming every weight that does not fit."""
        return load_model(self.spec, self.weights, rename=self._rename, device=device, dtype=dtype)

    def load_into(self, model: VlaMotModel) -> list[str]:
        """Write the weights into a model of the same architecture, converted to its dtypes.

        Returns the conventions of training that are other ones in this model, as `name: before → now`.
        Raises CheckpointError naming every option that would make the weights compute something else, and every
        weight that does not fit.
        """
        changed = require_conventions(model, self.spec.model, self.folder)
        infos = self.weights.infos.items()
        found = {ours: info.dtype for name, info in infos if (ours := self._rename(name)) is not None}
        stored = expected_dtypes(self.spec, found)
        load_weights(model, self.weights, rename=self._rename, stored=stored)
        return changed

    @property
    def _rename(self) -> Rename:
        return same_name if self.layout == "native" else ReleasedNames(self.layout).ours


def open_checkpoint(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    action_mode: str | None = None,
    architecture: Mapping[str, Any] | str | Path | None = None,
    embodiments: Sequence[str | Path] = (),
) -> Checkpoint:
    """Open a folder, or a Hub repository after downloading what of it is not in the cache.

    revision, token, cache_dir, local_files_only: see `hub.remote.fetch`.
    action_mode, architecture, embodiments: of a checkpoint in the authors' layout; see `hub.released.read_released`.
        architecture may also be a YAML file. One in our layout says all of it itself: there action_mode must be a
        mode that it knows.
    Raises CheckpointError for what cannot be found, read or understood, ConfigError for an architecture that is none,
    and for an option that this checkpoint cannot follow.
    """
    if action_mode is not None:
        require_action_mode(action_mode)
    shapes = read_architecture(architecture) if isinstance(architecture, str | Path) else architecture
    folder = fetch(
        name, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )
    kind = read_json(folder / native.CONFIG_FILE).get("type")
    if kind == TYPE:
        if shapes:
            raise ConfigError(f"{folder} states its own architecture; leave out architecture=….")
        if embodiments:
            raise ConfigError(f"{folder} describes its own robots; leave out embodiments=….")
        spec = native.read_spec(folder)
        if action_mode not in (None, *(robot.action_mode for robot in spec.robots)):
            known = ", ".join(map(str, spec.robots)) or "none"
            raise ConfigError(
                f"{folder} states the action mode of each robot, and none is in {action_mode!r}. It knows {known}; "
                "leave out action_mode=…."
            )
        return Checkpoint(folder, "native", spec, Weights.open(folder))
    if kind in released.TYPES:
        weights = Weights.open(folder)
        own = tuple(Path(file) for file in embodiments)
        spec = released.read_released(folder, weights, shapes or {}, action_mode, own)
        return Checkpoint(folder, kind, spec, weights)
    raise CheckpointError(
        f"{folder / native.CONFIG_FILE} says type {kind!r}; expected {TYPE!r}, or {' or '.join(released.TYPES)} "
        "of the released policies."
    )

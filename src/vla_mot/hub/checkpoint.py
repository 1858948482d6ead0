"""Opens whatever a user names: a folder or a Hub repository, in our layout or in the authors'."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.hub import native, released
from vla_mot.hub.files import read_json
from vla_mot.hub.native import load_model
from vla_mot.hub.released_architecture import read_architecture
from vla_mot.hub.released_names import ReleasedNames
from vla_mot.hub.remote import fetch
from vla_mot.hub.spec import TYPE, PolicySpec
from vla_mot.hub.tensors import Rename, Weights, load_weights, same_name
from vla_mot.model.model import VlaMotModel


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

    def load_into(self, model: VlaMotModel) -> None:
        """Write the weights into a model of the same architecture, converted to its dtypes.

        Raises CheckpointError naming every weight that does not fit.
        """
        infos = self.weights.infos.items()
        stored = {ours: info.dtype for name, info in infos if (ours := self._rename(name)) is not None}
        load_weights(model, self.weights, rename=self._rename, stored=stored)

    @property
    def _rename(self) -> Rename:
        return same_name if self.layout == "native" else ReleasedNames(self.layout).ours


def open_checkpoint(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    action_mode: str | None = None,
    architecture: Mapping[str, Any] | str | Path | None = None,
) -> Checkpoint:
    """Open a folder, or a Hub repository after downloading what of it is not in the cache.

    revision, token, local_files_only: see `hub.remote.fetch`.
    action_mode, architecture: of a checkpoint in the authors' layout; see `hub.released.read_released`. architecture
        may also be a YAML file.
    Raises CheckpointError for what cannot be found, read or understood, ConfigError for an architecture that is none.
    """
    shapes = read_architecture(architecture) if isinstance(architecture, str | Path) else architecture
    folder = fetch(name, revision=revision, token=token, local_files_only=local_files_only)
    kind = read_json(folder / native.CONFIG_FILE).get("type")
    if kind == TYPE:
        if shapes:
            raise ConfigError(f"{folder} states its own architecture; leave out architecture=….")
        return Checkpoint(folder, "native", native.read_spec(folder), Weights.open(folder))
    if kind in released.TYPES:
        weights = Weights.open(folder)
        spec = released.read_released(folder, weights, shapes or {}, action_mode)
        return Checkpoint(folder, kind, spec, weights)
    raise CheckpointError(
        f"{folder / native.CONFIG_FILE} says type {kind!r}; expected {TYPE!r}, or {' or '.join(released.TYPES)} "
        "of the released policies."
    )

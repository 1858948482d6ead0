"""Partial statistics on disk: one small file per dataset, so that what was counted once is never counted again.

A file is named by its key, a hash of everything that decides its numbers; it is whole or absent, and damage is found.
"""

import hashlib
import logging
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vla_mot.data.partial_statistics import FeaturePartial, Partial
from vla_mot.robots.moments import Moments

log = logging.getLogger(__name__)

_FEATURES = ("state", "action")
_MOMENTS = ("mean", "squares", "min", "max")


def default_folder() -> Path:
    """Return the user's folder for partials: `$XDG_CACHE_HOME/vla_mot/statistics` or `~/.cache/vla_mot/statistics`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vla_mot" / "statistics"


def write_partial(folder: Path, partial: Partial) -> Path:
    """Write under another name, then rename; returns the file."""
    tensors, facts = _stored(partial)
    folder.mkdir(parents=True, exist_ok=True)
    path = _place(folder, partial.key)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        unfinished.write_bytes(save(tensors, facts | {"digest": _digest(tensors, facts)}))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def read_partial(folder: Path, key: str) -> Partial | None:
    """The partial of that key; None where there is none, or it is damaged, which the log says."""
    path = _place(folder, key)
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            facts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        whole = facts.pop("digest") == _digest(tensors, facts) and facts["key"] == key
        if whole:
            return _restored(tensors, facts)
    except (SafetensorError, OSError, ValueError, KeyError):
        pass
    log.warning("the partial statistics %s are damaged and are computed again.", path)
    return None


def _place(folder: Path, key: str) -> Path:
    return folder / f"{key}.safetensors"


def _stored(partial: Partial) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors: dict[str, Tensor] = {}
    facts = {
        "key": partial.key,
        "content_hash": partial.content_hash,
        "frames": str(partial.frames),
        "episodes": str(partial.episodes),
    }
    for feature in _FEATURES:
        part: FeaturePartial = getattr(partial, feature)
        facts[f"{feature}.count"] = str(part.moments.count)
        tensors |= {f"{feature}.{name}": getattr(part.moments, name).contiguous() for name in _MOMENTS}
        tensors[f"{feature}.knots"] = part.knots.contiguous()
    return tensors, facts


def _restored(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> Partial:
    def feature(name: str) -> FeaturePartial:
        values = {part: tensors[f"{name}.{part}"] for part in _MOMENTS}
        return FeaturePartial(Moments(int(facts[f"{name}.count"]), **values), tensors[f"{name}.knots"])

    return Partial(
        content_hash=facts["content_hash"],
        key=facts["key"],
        frames=int(facts["frames"]),
        episodes=int(facts["episodes"]),
        state=feature("state"),
        action=feature("action"),
    )


def _digest(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    """Of everything in the file but itself: safetensors notices a file cut short, not a flipped bit."""
    digest = hashlib.blake2b(repr(sorted(facts.items())).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

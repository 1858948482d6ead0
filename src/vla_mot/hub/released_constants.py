"""Constants that the authors' layout stores as tensors, and that our code computes: they must say the same.

Weights that were trained around other wavelets, or another mean of pictures, would load and mean something else.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vla_mot.errors import CheckpointError
from vla_mot.hub.tensors import Weights, shortened

_HAAR = (0.5**0.5, 0.5**0.5)
_PATCHERS = {
    "_enc_model.encoder.patcher.wavelets": _HAAR,
    "_enc_model.encoder.patcher._arange": (0.0, 1.0),
    "_dec_model.decoder.unpatcher.wavelets": _HAAR,
    "_dec_model.decoder.unpatcher._arange": (0.0, 1.0),
}
_ROUNDED = 2.0**-8  # relative: bfloat16 holds a constant that exactly


def read_constants(weights: Weights, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The constants of a checkpoint. config: its `config.json`.

    Raises CheckpointError naming each that is missing or says something else.
    """
    expected = _expected(config["type"])
    found = dict(weights.stream([name for name in expected if name in weights.infos]))
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [
        f"{name} is {_short(found[name])}, expected {list(expected[name])}"
        for name in found
        if not _same(found[name], expected[name])
    ]
    for key in ("imagenet_mean", "imagenet_std"):
        values, told = expected.get(f"model.{key}"), config.get(key)
        if values and told is not None and list(told) != list(values):
            problems.append(f"config.json says {key} {told}, expected {list(values)}")
    if problems:
        raise CheckpointError(
            f"{weights.source} was made with other constants than the code computes: {shortened(problems)}."
        )
    return found


def _expected(kind: str) -> dict[str, tuple[float, ...]]:
    """Name in the file → what our code computes with, for one of the authors' types."""
    if kind == "qwena1":
        return {f"model.cosmos.{name}": values for name, values in _PATCHERS.items()}
    # Here, because torchvision comes with it: seconds that no other checkpoint needs.
    from vla_mot.backbones.internvl3 import IMAGENET_MEAN, IMAGENET_STD

    patchers = {f"model.cosmos_tokenizer.{name}": values for name, values in _PATCHERS.items()}
    return {**patchers, "model.imagenet_mean": IMAGENET_MEAN, "model.imagenet_std": IMAGENET_STD}


def _same(found: Tensor, expected: tuple[float, ...]) -> bool:
    if found.numel() != len(expected):
        return False
    return torch.allclose(found.double().flatten(), torch.tensor(expected).double(), rtol=_ROUNDED, atol=0)


def _short(tensor: Tensor) -> list[float]:
    return [round(value, 4) for value in tensor.double().flatten()[:4].tolist()]

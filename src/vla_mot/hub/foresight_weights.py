"""Weights for a foresight tokenizer from where its authors published them, all of them or none.

encoder.jit + decoder.jit                   NVIDIA's TorchScript archives, read without running them
config.json + *.safetensors [+ index.json]  a diffusers folder
name.safetensors                            one file with the autoencoder's own names
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.foresight.base import ForesightTokenizer
from vla_mot.hub.files import read_json
from vla_mot.hub.tensors import Weights, shortened
from vla_mot.hub.torchscript import read_torchscript

ARCHIVES = ("encoder.jit", "decoder.jit")
# A traced archive keeps the wavelets as tensors; ours are constants of the code (`cosmos_autoencoder`).
TRACED_CONSTANTS = (
    "encoder.patcher.wavelets",
    "encoder.patcher._arange",
    "decoder.unpatcher.wavelets",
    "decoder.unpatcher._arange",
)
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"


def load_tokenizer(tokenizer: ForesightTokenizer, path: Path) -> None:
    """Load a published autoencoder's weights into `tokenizer.autoencoder`, converted to the dtype that it has.

    path: a folder or file of one of the layouts above. A tokenizer that was built on the meta device gets its
    weights on the CPU. Raises ConfigError for a tokenizer without weights, and CheckpointError naming every weight
    that is missing, unexpected or of another shape, every configured value that differs, or the file that is damaged.
    """
    autoencoder = getattr(tokenizer, "autoencoder", None)
    if autoencoder is None:
        raise ConfigError(f"{type(tokenizer).__name__} has no weights to load; remove foresight.weights.")
    _load(autoencoder, path, _read(autoencoder, path))


def _read(autoencoder: Any, path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return Weights.open(path).read()
    if any((path / name).exists() for name in ARCHIVES):
        return _read_archives(path)
    if (path / DIFFUSERS_WEIGHTS).exists():
        if (path / "config.json").exists():
            _check_config(autoencoder, path)
        return Weights.open(path / DIFFUSERS_WEIGHTS).read()
    present = ", ".join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else "no folder"
    raise CheckpointError(
        f"{path} has neither {' and '.join(ARCHIVES)} nor {DIFFUSERS_WEIGHTS}; found: {present or 'nothing'}. "
        "Pickled weights (.bin, .pt, .ckpt) are not read: publish or save them as safetensors."
    )


def _load(autoencoder: nn.Module, path: Path, found: dict[str, Tensor]) -> None:
    expected = autoencoder.state_dict()
    problems = [f"missing {name} {tuple(expected[name].shape)}" for name in expected if name not in found]
    problems += [f"unexpected {name} {tuple(found[name].shape)}" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        ours, theirs = expected[name], found[name]
        if ours.shape != theirs.shape:
            problems.append(
                f"{name} has shape {tuple(theirs.shape)}, the autoencoder's is {tuple(ours.shape)}"
            )
        elif ours.is_floating_point() != theirs.is_floating_point():
            problems.append(f"{name} has dtype {theirs.dtype}, the autoencoder's is {ours.dtype}")
    if problems:
        raise CheckpointError(
            f"{path} does not fit the foresight autoencoder: {shortened(sorted(problems))}. "
            "See its options in conf/foresight/."
        )
    converted = {name: found[name].to(expected[name].dtype) for name in expected}
    autoencoder.load_state_dict(converted, assign=any(weight.is_meta for weight in expected.values()))


def _read_archives(folder: Path) -> dict[str, Tensor]:
    encoder, decoder = (read_torchscript(folder / name) for name in ARCHIVES)
    if twice := encoder.keys() & decoder.keys():
        raise CheckpointError(f"{folder}: both {' and '.join(ARCHIVES)} hold {sorted(twice)[:12]}.")
    return {name: x for name, x in (encoder | decoder).items() if name not in TRACED_CONSTANTS}


def _check_config(autoencoder: Any, folder: Path) -> None:
    """Weights of the right shapes still compute something else under another activation or scale."""
    config, ours = read_json(folder / "config.json"), dict(autoencoder.config)
    named = config.get("_class_name", type(autoencoder).__name__)
    if named != type(autoencoder).__name__:
        raise CheckpointError(
            f"{folder} holds a {named}, the foresight autoencoder is a {type(autoencoder).__name__}."
        )
    other = {
        key: value
        for key, value in config.items()
        if not key.startswith("_") and (key not in ours or _listed(ours[key]) != value)
    }
    if other:
        told = ", ".join(f"{key}: {value!r} (ours {ours.get(key)!r})" for key, value in sorted(other.items()))
        raise CheckpointError(
            f"{folder / 'config.json'} differs from the foresight autoencoder in {told}; copy them to foresight.config."
        )


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value

"""Low-rank adapters (LoRA, DoRA) on the linear layers of an expert, by `peft`, and the plain weights they amount to.

An adapted layer computes W·x + alpha / rank · B·A·x; DoRA also learns the length of every row of the sum. W stays as
it is and trains no longer, as do the expert's other weights. The injected layers keep the places of those they wrap,
under names of their own (`….q_proj.base_layer.weight`, `….q_proj.lora_A.default.weight`): what a run saves to go on
from holds these, and a policy holds what `merged` makes of them.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from vla_mot.errors import ConfigError
from vla_mot.keyed import keyed_uniform
from vla_mot.train.config import AdapterConfig, ExpertsConfig
from vla_mot.train.experts import EXPERTS, expert_of, training_of
from vla_mot.train.world import World

_NAME = "default"
_BASE, _DOWN, _UP = ".base_layer.", f".lora_A.{_NAME}.weight", f".lora_B.{_NAME}.weight"
_LENGTH = f".lora_magnitude_vector.{_NAME}.weight"
_DROPOUT_STREAM = 3  # of the keyed numbers that seed a step's dropout


def require_peft(experts: ExpertsConfig) -> None:
    """Raise ConfigError when an expert asks for adapters and `peft` is not installed."""
    adapted = [name for name in EXPERTS if getattr(experts, name).adapter is not None]
    if adapted and find_spec("peft") is None:
        raise ConfigError(f"train.experts.{adapted[0]}.adapter needs peft: pip install 'vla-mot[peft]'.")


def inject(model: nn.Module, experts: ExpertsConfig, seed: int) -> list[str]:
    """Put adapters beside the linear layers of the experts that ask for them, in place; those layers' names.

    Called on a whole model on its own device that holds the weights to start from: DoRA begins with the lengths of
    their rows. What the adapters begin with depends on `seed` alone, and changes no output. A layer whose weight does
    not train (nobody reads it) gets none. Raises ModuleNotFoundError where `peft` is not installed.
    """
    adapted = {name: how for name in EXPERTS if (how := getattr(experts, name).adapter) is not None}
    if not adapted:
        return []
    layers = _linear_layers(model)
    learns = {weight: weight.requires_grad for weight in model.parameters()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, how in adapted.items():
            _inject(model, layers[name], how)
    for name, weight in model.named_parameters():
        if weight in learns:  # peft stops everything but its own
            weight.requires_grad_(learns[weight] and expert_of(name) not in adapted)
    return [layer for name in adapted for layer in layers[name]]


def _linear_layers(model: nn.Module) -> dict[str, list[str]]:
    """Per expert, the names of its linear layers that train."""
    found: dict[str, list[str]] = {name: [] for name in EXPERTS}
    for name, module in model.named_modules():
        owner = expert_of(f"{name}.weight") if isinstance(module, nn.Linear) else None
        if owner is not None and module.weight.requires_grad:
            found[owner].append(name)
    return found


def _inject(model: nn.Module, layers: list[str], how: AdapterConfig) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    assert layers, "an expert without a linear layer that trains has nothing to adapt"
    config = LoraConfig(
        r=how.rank,
        lora_alpha=how.alpha,
        lora_dropout=how.dropout,
        use_dora=how.kind == "dora",
        target_modules="|".join(map(re.escape, layers)),
    )
    inject_adapter_in_model(config, model, _NAME)
    del model.peft_config  # a note for those who go on with peft; it warns when it finds its own


@contextmanager
def dropping(experts: ExpertsConfig, seed: int, step: int, world: World) -> Iterator[None]:
    """Around the passes of a step: what adapters drop of their inputs depends on seed, step and rank alone.

    So a resumed run drops what an uninterrupted one does. Torch's generators stay as they were.
    """
    if not any(how.adapter and how.adapter.dropout for how in vars(experts).values()):
        yield
        return
    key = keyed_uniform(seed, step, _DROPOUT_STREAM, torch.tensor([world.rank]), 1)
    own = [torch.device(world.device)] if torch.device(world.device).type == "cuda" else []
    with torch.random.fork_rng(own):
        torch.manual_seed(int(key * 2**53))
        yield


@torch.no_grad()
def merged(state: Mapping[str, Tensor], experts: ExpertsConfig) -> dict[str, Tensor]:
    """The state of an adapted `VlaMotModel`, its own or averaged, as that of a plain one of the same outputs.

    state: whole tensors under the names of `model.state_dict()`. What no adapter touches is passed on as it is; a
    state without adapters comes back unchanged.
    """
    plain = {}
    for name, tensor in state.items():
        if name.endswith((_DOWN, _UP, _LENGTH)):
            continue
        layer, wrapped, leaf = name.partition(_BASE)
        if wrapped and leaf == "weight":
            tensor = _merged_weight(state, layer, tensor, experts)
        plain[name.replace(_BASE, ".")] = tensor
    return plain


def _merged_weight(state: Mapping[str, Tensor], layer: str, weight: Tensor, experts: ExpertsConfig) -> Tensor:
    """`(out, in)`: one layer's weight with its adapter in it, in the weight's dtype."""
    training = training_of(f"{layer}.weight", experts)
    assert training is not None and training.adapter is not None, f"{layer} has an adapter nobody asked for"
    scale = training.adapter.alpha / training.adapter.rank
    whole = weight.float() + scale * state[layer + _UP].float() @ state[layer + _DOWN].float()
    if (length := state.get(layer + _LENGTH)) is not None:
        whole = whole * (length.float() / torch.linalg.norm(whole, dim=1)).unsqueeze(1)
    return whole.to(weight.dtype)

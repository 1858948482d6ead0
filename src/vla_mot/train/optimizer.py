"""The optimizers and their learning-rate schedule."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vla_mot.errors import CheckpointError
from vla_mot.train import eight_bit
from vla_mot.train.config import TrainConfig
from vla_mot.train.experts import groups


class Optimizers:
    """The optimizers of one run, stepped as one.

    `adamw` trains everything with AdamW; `adamw8bit` does so with a quantised state. `muon` trains the hidden matrices
    with Muon (orthogonalised momentum, its step scaled to AdamW's, so that one learning rate serves both) and the rest
    with AdamW: embeddings, convolutions, norms and biases. Matrices decay, vectors do not; each expert has its own
    multiple of the learning rate.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._names: dict[Tensor, str] = {p: name for name, p in named.items()}
        hidden: set[Tensor] = _hidden_matrices(model) if config.optimizer == "muon" else set()
        self._parts: list[torch.optim.Optimizer] = []
        if rest := _groups({name: p for name, p in named.items() if p not in hidden}, config):
            self._parts.append(_adamw(rest, config))
        if hidden:
            matrices = _groups({name: p for name, p in named.items() if p in hidden}, config)
            self._parts.append(torch.optim.Muon(matrices, lr=config.lr, adjust_lr_fn="match_rms_adamw"))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts."""
        return [group for part in self._parts for group in part.param_groups]

    def step(self, rate: float) -> None:
        """Update the weights at a learning rate."""
        for group in self.param_groups:
            group["lr"] = rate * group["lr_scale"]
        for part in self._parts:
            part.step()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, as `<parameter>/<quantity>`; empty before the first step."""
        return {
            f"{self._names[parameter]}/{quantity}": value
            for part in self._parts
            for parameter, state in part.state.items()
            for quantity, value in eight_bit.packed(state).items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` gave: each one is taken over as it is, sharded where its weight is.

        Raises CheckpointError unless it is the state of exactly these weights.
        """
        found: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, _, quantity = key.rpartition("/")
            found.setdefault(name, {})[quantity] = value
        names = set(self._names.values())
        if found and found.keys() != names:
            wrong = sorted(found.keys() ^ names)
            raise CheckpointError(
                f"the optimizer's state is of other weights than this run trains: {wrong[:5]} …"
            )
        for part in self._parts:
            for group in part.param_groups:
                for parameter in group["params"] if found else ():
                    state = found[self._names[parameter]]
                    part.state[parameter] = eight_bit.unpacked(
                        part, {name: value.to(parameter.device) for name, value in state.items()}
                    )


def _groups(named: Mapping[str, Tensor], config: TrainConfig) -> list[dict[str, Any]]:
    return [
        {
            "params": group.params,
            "weight_decay": config.weight_decay if group.decays else 0.0,
            "lr_scale": group.lr_scale,
        }
        for group in groups(named.items(), config.experts)
    ]


def _adamw(parameters: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adamw8bit":
        return eight_bit.make(parameters, config)
    return torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def _hidden_matrices(model: nn.Module) -> set[Tensor]:
    """Weights of linear layers: what Muon is made for."""
    linear = (module for module in model.modules() if isinstance(module, nn.Linear))
    return {module.weight for module in linear if module.weight.requires_grad}


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of optimizer step `step` (counted from 0)."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr_final + (config.lr - config.lr_final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

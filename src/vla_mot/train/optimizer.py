"""The optimizers, their learning-rate schedule and the averaged weights."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vla_mot.errors import CheckpointError
from vla_mot.train.config import TrainConfig


class Optimizers:
    """The optimizers of one run, stepped as one.

    `adamw` trains everything with AdamW. `muon` trains the hidden matrices with Muon (orthogonalised momentum, its
    step scaled to AdamW's, so that one learning rate serves both) and the rest with AdamW: embeddings, convolutions,
    norms and biases. Matrices decay, vectors do not.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        named = model.named_parameters()
        self._names: dict[Tensor, str] = {p: name for name, p in named if p.requires_grad}
        hidden: set[Tensor] = _hidden_matrices(model) if config.optimizer == "muon" else set()
        rest = [p for p in self._names if p not in hidden]
        groups = [
            {"params": [p for p in rest if p.dim() > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
        ]
        if hidden:
            self._parts.append(
                torch.optim.Muon(
                    [p for p in self._names if p in hidden],
                    lr=config.lr,
                    weight_decay=config.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts."""
        return [group for part in self._parts for group in part.param_groups]

    def step(self, rate: float) -> None:
        """Update the weights at a learning rate."""
        for group in self.param_groups:
            group["lr"] = rate
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
            for quantity, value in state.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` gave. Raises CheckpointError unless it is the state of exactly these weights."""
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
                    part.state[parameter] = {
                        name: value.to(parameter.device) for name, value in state.items()
                    }


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


class AveragedWeights:
    """Exponential moving average of a model's state, for validation and inference.

    The decay is warmed up as min(decay, (1 + n) / (10 + n)), so that early averages forget their random start.
    With decay 0 it always equals the model.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.decay else 0.0
        mine, theirs = [], []
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                mine.append(self.state[name])
                theirs.append(tensor.detach())
            else:
                self.state[name].copy_(tensor)
        torch._foreach_lerp_(mine, theirs, 1 - decay)

    def copy_to(self, model: nn.Module) -> None:
        """Load the average into a model of the same shape."""
        model.load_state_dict(self.state, strict=True)

    def load(self, state: dict[str, Tensor], updates: int) -> None:
        """Restore a saved average."""
        for name, tensor in self.state.items():
            tensor.copy_(state[name])
        self.updates = updates

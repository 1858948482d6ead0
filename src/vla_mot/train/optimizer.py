"""AdamW, its learning-rate schedule and the averaged weights."""

import math

import torch
from torch import Tensor, nn

from vla_mot.train.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over what is trained; matrices decay, vectors (norms, biases) do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


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

"""How a run trains. The defaults are the paper's Table 2 (pretraining) where it says something."""

import math
from dataclasses import dataclass

from vla_mot.errors import ConfigError, unknown_name
from vla_mot.options import at_least

_COUNTS = (
    "steps",
    "batch_size",
    "action_draws",
    "log_every",
    "val_every",
    "save_every",
    "keep_checkpoints",
    "val_samples",
)
_AMOUNTS = ("lr_final", "warmup_steps", "eps", "weight_decay", "foresight_weight")


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation, averaging and bookkeeping of one run.

    steps: optimizer steps. batch_size: global batch, in samples. seed: keys weights, order and noise.
    lr, lr_final, warmup_steps, schedule: `constant` or `cosine` from lr to lr_final after a linear warm-up.
    optimizer: `adamw`, or `muon` for the hidden matrices beside AdamW for the rest (see `train.optimizer`).
    betas, eps, weight_decay, clip_norm: AdamW and gradient clipping.
    foresight_weight: λ; a setting of the tokenizer, since another latent scale needs another λ.
    action_draws: K noise draws per sample that share its prefix.
    ema_decay: of the averaged weights that are saved for inference; 0 turns averaging off.
    log_every, val_every, save_every: in steps. keep_checkpoints: how many of the newest stay.
    val_samples: samples of the validation set that are scored.
    gradient_checkpointing: recompute each joint layer in the backward pass.
    """

    steps: int = 700_000
    batch_size: int = 512
    seed: int = 0
    lr: float = 5e-5
    lr_final: float = 5e-6
    warmup_steps: int = 0
    schedule: str = "constant"
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    foresight_weight: float = 0.01
    action_draws: int = 1
    ema_decay: float = 0.0
    log_every: int = 10
    val_every: int = 500
    save_every: int = 1000
    keep_checkpoints: int = 2
    val_samples: int = 512
    gradient_checkpointing: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        at_least(1, self._named(*_COUNTS))
        at_least(0, self._named("seed", *_AMOUNTS))
        for name, value in self._named("lr", *_AMOUNTS).items():
            if not math.isfinite(value):
                raise ConfigError(f"{name} must be finite, got {value}.")
        for name, value in self._named("lr", "clip_norm").items():
            if not value > 0:
                raise ConfigError(f"{name} must be positive, got {value}.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"train.betas must lie in [0, 1), got {list(self.betas)}.")
        if self.seed >= 2**63:
            raise ConfigError(f"train.seed must be smaller than 2^63, got {self.seed}.")
        for name, known in (("schedule", ("constant", "cosine")), ("optimizer", ("adamw", "muon"))):
            if getattr(self, name) not in known:
                raise ConfigError(unknown_name(f"train.{name}", getattr(self, name), known))
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"train.ema_decay must lie in [0, 1), got {self.ema_decay}.")

    def _named(self, *names: str) -> dict[str, float]:
        """Values under the names that a user writes."""
        return {f"train.{name}": getattr(self, name) for name in names}

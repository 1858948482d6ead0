"""How a run trains. The defaults are the paper's Table 2 (pretraining) where it says something."""

import math
from dataclasses import dataclass, field
from typing import Literal

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
class ParallelConfig:
    """How a step is computed: by which ranks, in what pieces, in what precision. No choice changes the batch.

    strategy: of several ranks. `ddp`: each holds a whole copy. `fsdp`: weights, gradients and optimizer are sharded.
    shard_ranks: ranks that share one sharded copy, of which there are then several (hybrid); None: all of them.
    micro_batch: samples that a rank passes at once; None: its whole share. accumulate: passes per step; None: as
        many as the batch needs.
    precision: `fp32`, or `bf16`: products in bfloat16 over float32 weights.
    compile: every joint layer by `torch.compile`, without graph breaks.
    recompute: what the backward pass computes again instead of keeping it: nothing (`none`), every joint layer
        (`full`), or all of it but attention and products with weights (`selective`).
    """

    strategy: Literal["ddp", "fsdp"] = "ddp"
    shard_ranks: int | None = None
    micro_batch: int | None = None
    accumulate: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    recompute: Literal["none", "full", "selective"] = "none"

    def __post_init__(self) -> None:
        for name in ("shard_ranks", "micro_batch", "accumulate"):
            if (value := getattr(self, name)) is not None:
                at_least(1, {f"train.parallel.{name}": value})
        if self.shard_ranks is not None and self.strategy != "fsdp":
            raise ConfigError("train.parallel.shard_ranks shards, which needs train.parallel.strategy=fsdp.")


@dataclass(frozen=True)
class AdapterConfig:
    """Low-rank adapters of one expert's linear layers: `lora`, or `dora`, which learns magnitudes too.

    rank, alpha: the update is alpha / rank · B·A. dropout: of the adapters' inputs.
    """

    kind: Literal["lora", "dora"] = "lora"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        at_least(1, {"adapter.rank": self.rank})
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"adapter.alpha must be positive, got {self.alpha}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"adapter.dropout must lie in [0, 1), got {self.dropout}.")


@dataclass(frozen=True)
class ExpertTraining:
    """How the weights of one expert train.

    lr_scale: times `train.lr`. frozen: not at all. adapter: only low-rank adapters beside them.
    """

    lr_scale: float = 1.0
    frozen: bool = False
    adapter: AdapterConfig | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr_scale) and self.lr_scale > 0):
            raise ConfigError(
                f"an expert's lr_scale must be positive, got {self.lr_scale}; to keep its weights set frozen=true."
            )
        if self.frozen and self.adapter is not None:
            raise ConfigError(
                "an expert is either frozen or trained by adapters, which freeze its own weights anyway."
            )


@dataclass(frozen=True)
class ExpertsConfig:
    """The vision tower and the three experts; heads and embeddings belong to the expert that they feed or read."""

    vision: ExpertTraining = field(default_factory=ExpertTraining)
    understanding: ExpertTraining = field(default_factory=ExpertTraining)
    generation: ExpertTraining = field(default_factory=ExpertTraining)
    action: ExpertTraining = field(default_factory=ExpertTraining)


@dataclass(frozen=True)
class SafetyConfig:
    """What happens when something goes wrong.

    not_finite: a step whose loss or gradient is not finite ends the run (`stop`) or is left out (`skip`), up to
        `skip_steps` times.
    spike: a loss this many times its running mean is noted in the log.
    stuck_seconds: a rank that makes no progress for so long says where it stands and ends the run; None: never.
    """

    not_finite: Literal["stop", "skip"] = "stop"
    skip_steps: int = 10
    spike: float = 5.0
    stuck_seconds: float | None = 1800.0

    def __post_init__(self) -> None:
        at_least(0, {"train.safety.skip_steps": self.skip_steps})
        if not self.spike > 1:
            raise ConfigError(f"train.safety.spike must be greater than 1, got {self.spike}.")
        if self.stuck_seconds is not None and not self.stuck_seconds > 0:
            raise ConfigError(f"train.safety.stuck_seconds must be positive, got {self.stuck_seconds}.")


@dataclass(frozen=True)
class LogConfig:
    """Who hears of a run besides its `log.jsonl` and its `pictures/`.

    writers: any of `tensorboard`, `wandb` and `trackio`; the last two are the extra `tracking`.
    project, name: of the last two; without a name the run's folder has it. Trackio's gets an ending of its own.
    offline: wandb writes into the run's folder only, to be sent later by `wandb sync`. Trackio always stays here.
    utilisation: count a sample's FLOPs and time a product of matrices when the run starts, which takes some seconds.
    """

    writers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    project: str = "vla_mot"
    name: str | None = None
    offline: bool = False
    utilisation: bool = True

    def __post_init__(self) -> None:
        twice = [name for place, name in enumerate(self.writers) if name in self.writers[:place]]
        if twice:
            raise ConfigError(f"train.log.writers lists {twice[0]!r} twice.")


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation, averaging and bookkeeping of one run.

    steps: optimizer steps. batch_size: global batch, in samples. seed: keys weights, order and noise.
    lr, lr_final, warmup_steps, schedule: `constant` or `cosine` from lr to lr_final after a linear warm-up.
    optimizer: `adamw`; `muon` for the hidden matrices beside AdamW for the rest; or `adamw8bit`, whose state is
        quantised (bitsandbytes). See `train.optimizer`.
    betas, eps, weight_decay, clip_norm: AdamW and gradient clipping.
    foresight_weight: λ; a setting of the tokenizer, since another latent scale needs another λ.
    action_draws: K noise draws per sample that share its prefix.
    ema_decay: of the averaged weights that are saved for inference; 0 turns averaging off.
    log_every, val_every, save_every: in steps. keep_checkpoints: how many of the newest stay.
    val_samples: samples of the validation set that are scored. val_open_loop: of these, how many are sampled and
        foreseen as on the robot, which costs more; val_pictures: and how many of those are shown.
    keep_every: checkpoints of multiples of so many steps stay as well. keep_best: and the one that validated best.
    save_async: checkpoints are written beside the next steps, from a copy of the state.
    insulate: the action loss sends no gradient through the keys and values of understanding and generation.
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
    val_open_loop: int = 64
    val_pictures: int = 4
    keep_every: int | None = None
    keep_best: bool = False
    save_async: bool = False
    insulate: bool = False
    device: str = "cpu"
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        at_least(1, self._named(*_COUNTS))
        at_least(0, self._named("seed", "val_open_loop", "val_pictures", *_AMOUNTS))
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
        for name, known in (
            ("schedule", ("constant", "cosine")),
            ("optimizer", ("adamw", "muon", "adamw8bit")),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(unknown_name(f"train.{name}", getattr(self, name), known))
        if self.keep_every is not None:
            at_least(1, {"train.keep_every": self.keep_every})
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"train.ema_decay must lie in [0, 1), got {self.ema_decay}.")
        if self.optimizer == "adamw8bit" and self.parallel.strategy == "fsdp":
            raise ConfigError(
                "train.optimizer=adamw8bit takes whole weights; with train.parallel.strategy=fsdp, which shards the "
                "optimizer's state anyway, use adamw. Or set train.parallel.strategy=ddp."
            )
        self._require_compilable()

    def _require_compilable(self) -> None:
        """peft's DoRA empties a cache of its own while it runs: torch will not compile that to be run again."""
        dora = [
            name for name, how in vars(self.experts).items() if how.adapter and how.adapter.kind == "dora"
        ]
        if dora and self.parallel.compile and self.parallel.recompute != "none":
            raise ConfigError(
                f"train.parallel.compile=true and recompute={self.parallel.recompute} do not go together with adapters "
                f"of kind dora ({', '.join(dora)}): leave one of the two out, or set kind: lora."
            )

    def _named(self, *names: str) -> dict[str, float]:
        """Values under the names that a user writes."""
        return {f"train.{name}": getattr(self, name) for name in names}

"""`VlaMotConfig`: the `config.json` of our checkpoints as a LeRobot `PreTrainedConfig`.

lerobot-eval  --policy.path=<checkpoint> --env.type=conveyor
lerobot-train --policy.path=<checkpoint> --dataset.repo_id=…      # go on from a checkpoint
lerobot-train --policy.type=vla_mot      --dataset.repo_id=…      # from scratch: a tiny model
"""

from dataclasses import dataclass, field, replace
from typing import Any, Self

from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig
from lerobot.policies.rtc import RTCConfig

from vla_mot.errors import ConfigError
from vla_mot.hub.spec import PolicySpec
from vla_mot.model.config import ModelConfig
from vla_mot.policy.card import stated_license
from vla_mot.policy.defaults import default_model
from vla_mot.robots.actions import ABSOLUTE, DELTA
from vla_mot.robots.catalog import find_embodiment
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.robot import Robot

_LR_FROM_SCRATCH, _LR_FROM_CHECKPOINT = 1e-3, 5e-5


def no_normalization() -> dict[str, NormalizationMode]:
    """LeRobot's switched off: normalization is the policy's own."""
    return dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)


@PreTrainedConfig.register_subclass("vla_mot")
@dataclass
class VlaMotConfig(PreTrainedConfig):
    """What LeRobot needs to know about a vla_mot policy. Raises ConfigError for what does not fit together."""

    # Only the present observation is asked for; the policy remembers the history frame by itself.
    n_obs_steps: int = 1
    # Steps of a predicted chunk, and how many of them are executed before the next prediction.
    chunk_size: int = 50
    n_action_steps: int = 50
    # Steps of the sampler, and what carries noise over one: euler, midpoint or heun.
    num_steps: int = 10
    solver: str = "euler"
    # `abs`, or `delta` (chunk minus the state at its start), which needs statistics of delta chunks: these come
    # with a checkpoint. A LeRobot dataset has statistics of absolute actions only, so `abs` from scratch.
    # None: the checkpoint's only one, `abs` from scratch.
    action_mode: str | None = None
    # Options of `vla_mot.model.config.ModelConfig`; from scratch they replace those of `policy.defaults`.
    model: dict[str, Any] = field(default_factory=dict)
    # The robot to drive: a name among `embodiments`, or one that comes with vla_mot (conf/embodiment/).
    # None: the checkpoint's only one; from scratch, read off the dataset's features.
    embodiment: str | None = None
    # Every `vla_mot.robots.embodiment.Embodiment` that the checkpoint knows.
    embodiments: list[dict[str, Any]] = field(default_factory=list)
    # Of the weights: float32, bfloat16, or mixed (each as it is stored).
    dtype: str = "float32"
    # Normalization is the policy's own, by the statistics in its checkpoint: LeRobot's is switched off.
    normalization_mapping: dict[str, NormalizationMode] = field(default_factory=no_normalization)

    # Seed of the first episode's sampling noise; every further episode of a process takes the next number.
    sampling_seed: int = 0

    # Real-time chunking, which `lerobot-rollout --inference.type=rtc` switches on. `guided` pulls a new chunk towards
    # the last one, `frozen` fixes what will be executed meanwhile; `identity` saves `exact`'s way back through the
    # denoiser. See `vla_mot.infer.rtc`.
    rtc_config: RTCConfig | None = None
    rtc_mode: str = "guided"
    rtc_jacobian: str = "exact"

    # λ of the loss L_act + λ·L_gen, and noise draws per sample that share its prefix.
    foresight_weight: float = 0.01
    action_draws: int = 1
    gradient_checkpointing: bool = False
    # None: 1e-3 from scratch (a tiny model), 5e-5 from a checkpoint (the paper's posttraining).
    optimizer_lr: float | None = None
    # Cosine decay from the learning rate to this fraction of it, after a linear warm-up; the paper's posttraining.
    scheduler_lr_fraction: float = 0.1
    scheduler_warmup_steps: int = 2000
    scheduler_decay_steps: int = 60_000
    optimizer_betas: tuple[float, float] = (0.9, 0.95)
    optimizer_eps: float = 1e-8
    optimizer_weight_decay: float = 0.01
    optimizer_grad_clip_norm: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_obs_steps != 1:
            raise ConfigError(
                f"n_obs_steps must be 1: the policy keeps its own history; got {self.n_obs_steps}."
            )
        if self.action_mode not in (None, ABSOLUTE, DELTA):
            raise ConfigError(
                f"action_mode must be {ABSOLUTE!r} or {DELTA!r}, got {self.action_mode!r}; see --policy.action_mode."
            )
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ConfigError(
                f"--policy.n_action_steps must lie in 1 … chunk_size = {self.chunk_size}, got {self.n_action_steps}."
            )
        given = self.model.get("chunk_size", self.chunk_size)
        if given != self.chunk_size:
            raise ConfigError(
                f"--policy.chunk_size is {self.chunk_size}, but the model predicts chunks of {given}: its weights and "
                "statistics are for that length. Change --policy.n_action_steps instead."
            )
        if self.push_to_hub:  # the card is made after training: too late to find a typing error
            stated_license(self.license)
        self.model_config()

    @classmethod
    def of(cls, spec: PolicySpec, robot: Robot, **options: Any) -> Self:
        """The configuration of a policy that drives one of its robots. options: what replaces the spec's."""
        told = replace(spec, robots=(robot,)).config_dict()
        del told["type"]
        for side in ("input_features", "output_features"):
            told[side] = {
                key: PolicyFeature(FeatureType(feature["type"]), tuple(feature["shape"]))
                for key, feature in told[side].items()
            }
        return cls(**told | options)

    def model_config(self) -> ModelConfig:
        """The architecture. Raises ConfigError for an unknown option."""
        return ModelConfig.from_dict({**default_model(), **self.model, "chunk_size": self.chunk_size})

    @property
    def observation_delta_indices(self) -> list[int]:
        """Frames t − m, t and t + m, for training."""
        offset = self._offset(self.model_config())
        return [-offset, 0, offset]

    def _offset(self, model: ModelConfig) -> int:
        """m in frames. LeRobot asks before a policy from scratch has read its robot off the dataset."""
        if model.offset_seconds is None:
            return model.offset_frames
        known = list(map(Embodiment.from_dict, self.embodiments))
        mine = next((e for e in known if self.embodiment is None or e.is_called(self.embodiment)), None)
        if mine is None and self.embodiment is not None:
            mine = find_embodiment(self.embodiment)
        if mine is None:
            raise ConfigError(
                f"offset_seconds={model.offset_seconds:g} cannot be counted in frames before the robot is known: say "
                "offset_frames in --policy.model, or --policy.embodiment with one that comes with vla_mot."
            )
        return model.offset(mine)

    @property
    def action_delta_indices(self) -> list[int]:
        """The chunk."""
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards are read."""
        return None

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        if self.optimizer_lr is not None:
            return self.optimizer_lr
        return _LR_FROM_CHECKPOINT if self.pretrained_path else _LR_FROM_SCRATCH

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW, as in the paper's Table 2."""
        return AdamWConfig(
            lr=self.peak_lr,
            betas=self.optimizer_betas,
            eps=self.optimizer_eps,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        """Warm-up and cosine decay; LeRobot shrinks both for runs that are shorter."""
        return CosineDecayWithWarmupSchedulerConfig(
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
            peak_lr=self.peak_lr,
            decay_lr=self.peak_lr * self.scheduler_lr_fraction,
        )

    def validate_features(self) -> None:
        """Raise ConfigError unless there is a picture to see and an action to predict."""
        if not self.image_features:
            raise ConfigError(f"the policy needs a camera, got inputs {sorted(self.input_features or {})}.")
        if self.action_feature is None:
            raise ConfigError(
                f"the policy needs a feature 'action', got {sorted(self.output_features or {})}."
            )

"""`QwenA1Config` and `InternA1Config`: the `config.json` of the released policies as LeRobot configurations.

lerobot-eval --policy.path=InternRobotics/InternVLA-A1-3B --policy.embodiment=aloha --env.type=…

The fields are the authors', so that their file is read and written back word for word; ours come last, are never
written, and say how to open it. LeRobot evaluates such a policy and rolls it out. It trains the converted one: the
checkpoints of a run are in our layout, and so must be the configuration by which the run is resumed.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from lerobot.configs import NormalizationMode, PolicyFeature, PreTrainedConfig

from vla_mot.errors import ConfigError
from vla_mot.hub.checkpoint import Checkpoint
from vla_mot.hub.files import read_json, write_json
from vla_mot.policy.configuration_vla_mot import VlaMotConfig, no_normalization
from vla_mot.policy.processor_files import with_processor_files

log = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
# What every LeRobot policy has and does not depend on its type.
_CARRIED = ("device", "use_amp", "push_to_hub", "repo_id", "private", "tags", "license", "pretrained_path")
# Fields of `PreTrainedConfig` in the authors' files; later LeRobots added others, which their reader refuses.
_LEROBOT = ("n_obs_steps", "input_features", "output_features", *_CARRIED)
_OURS = ("embodiment", "action_mode", "architecture", "sampling_seed")
# What may differ from the file: where and how the policy runs. All else belongs to the weights, or to training.
_FREE = (*_LEROBOT, *_OURS, "n_action_steps", "num_inference_steps", "dtype", "compile_model", "compile_mode")
_WITHOUT_EFFECT = {"compile_model": False, "empty_cameras": 0}


@dataclass
class ReleasedConfig(PreTrainedConfig):
    """What both released types share. Fields without a comment are for training, which these types do not do."""

    # Of the weights in memory: float32 or bfloat16. As the file says: every weight as it is stored.
    dtype: str = "bfloat16"
    # Steps of a predicted chunk, how many of them are executed, and Euler steps of the sampler.
    chunk_size: int = 50
    n_action_steps: int = 50
    max_state_dim: int = 32
    max_action_dim: int = 32
    num_inference_steps: int = 10
    time_sampling_beta_alpha: float = 1.5
    time_sampling_beta_beta: float = 1.0
    time_sampling_scale: float = 0.999
    time_sampling_offset: float = 0.001
    # Of the embedding of the noise level.
    min_period: float = 4e-3
    max_period: float = 4.0
    # Rows and columns, pixels.
    image_resolution: tuple[int, int] = (224, 224)
    # Not used: the embodiment says which camera slots are absent.
    empty_cameras: int = 0
    normalization_mapping: dict[str, NormalizationMode] = field(default_factory=no_normalization)
    gradient_checkpointing: bool = False
    # Not used: compile the policy yourself.
    compile_model: bool = False
    compile_mode: str = "max-autotune"
    optimizer_lr: float = 2.5e-5
    optimizer_betas: tuple[float, float] = (0.9, 0.95)
    optimizer_eps: float = 1e-8
    optimizer_weight_decay: float = 0.01
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 1000
    scheduler_decay_steps: int = 30_000
    scheduler_decay_lr: float = 2.5e-6
    # Tokens of the instruction.
    tokenizer_max_length: int = 48
    freeze_vision_encoder: bool = False
    train_expert_only: bool = False
    train_vlm_only: bool = False
    # Rows and columns of latents that make one foresight token.
    scale_factor: int = 8
    lambda_gen: float = 0.01

    # ---- ours: of a run, not of the checkpoint ----
    # The robot to drive, a name in the checkpoint's stats.json. None: the only one that is known.
    embodiment: str | None = None
    # What its statistics are of, `delta` or `abs`. None: what train_config.json says, else `delta`.
    action_mode: str | None = None
    # YAML with the options of `vla_mot.model.config.ModelConfig` that the weights of an unpublished size leave open.
    architecture: Path | None = None
    # As in `VlaMotConfig`.
    sampling_seed: int = 0

    def open_options(self) -> dict[str, Any]:
        """What `vla_mot.hub.checkpoint.open_checkpoint` needs to know. Raises ConfigError for an unreadable YAML."""
        return {"action_mode": self.action_mode, "architecture": self.architecture}

    def opened(self, found: Checkpoint) -> VlaMotConfig:
        """The same as a configuration of ours, for a checkpoint that was opened with `open_options`.

        What LeRobot's commands read here afterwards is completed in place: the features of the robot that was
        chosen and, as `pretrained_path`, a folder with processor files (`policy.processor_files`).
        Raises ConfigError when this contradicts the checkpoint, or when it does not say which robot to drive.
        """
        if found.spec.released is None or found.layout != self.type:
            raise ConfigError(
                f"{found.folder} holds a policy of the {found.layout} layout, the configuration is of type "
                f"{self.type}; leave the configuration out, or name the other checkpoint."
            )
        file = found.spec.released.config
        self._require_same(file, found.folder)
        ours = VlaMotConfig.of(
            found.spec,
            found.spec.robot(self.embodiment, self.action_mode),
            n_action_steps=self.n_action_steps,
            num_steps=self.num_inference_steps,
            dtype=found.spec.dtype if self.dtype == file.get("dtype") else self.dtype,
            foresight_weight=self.lambda_gen,
            sampling_seed=self.sampling_seed,
            **{name: getattr(self, name) for name in _CARRIED},
        )
        _complete(self, ours, file, found.folder)
        return ours

    def _require_same(self, file: Mapping[str, Any], folder: Path) -> None:
        """Raise ConfigError for a value of the weights, or of their training, that is not the file's."""
        mine = {part.name: _plain(getattr(self, part.name)) for part in fields(self) if part.name in file}
        wrong = [name for name, value in mine.items() if name not in _FREE and value != file[name]]
        if wrong:
            raise ConfigError(
                f"the configuration and the checkpoint {folder} differ in {', '.join(wrong)}; what belongs to the "
                "weights or to their training cannot be overridden. Leave it out of the command line."
            )
        for name, default in _WITHOUT_EFFECT.items():
            if getattr(self, name) != default:
                log.warning("%s=%s has no effect on this policy", name, getattr(self, name))

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the authors' fields and nothing else: their reader refuses a key that it does not know.

        Where the checkpoint was opened (`pretrained_path`) is not part of it: to their LeRobot it would mean that
        the weights lie there.
        """
        super()._save_pretrained(save_directory)
        content = read_json(save_directory / CONFIG_FILE)
        theirs = {f.name for f in fields(self)} - {f.name for f in fields(PreTrainedConfig)} - set(_OURS)
        kept = {key: value for key, value in content.items() if key in {"type", *_LEROBOT, *theirs}}
        write_json(save_directory / CONFIG_FILE, kept | {"pretrained_path": None})

    # ---- training: refused before a dataset is opened ----

    @property
    def observation_delta_indices(self) -> NoReturn:
        """Raises ConfigError: see the module."""
        self._refuse_training()

    @property
    def action_delta_indices(self) -> NoReturn:
        """Raises ConfigError: see the module."""
        self._refuse_training()

    @property
    def reward_delta_indices(self) -> NoReturn:
        """Raises ConfigError: see the module."""
        self._refuse_training()

    def get_optimizer_preset(self) -> NoReturn:
        """Raises ConfigError: see the module."""
        self._refuse_training()

    def get_scheduler_preset(self) -> NoReturn:
        """Raises ConfigError: see the module."""
        self._refuse_training()

    def _refuse_training(self) -> NoReturn:
        name = self.pretrained_path or "…"
        raise ConfigError(
            f"LeRobot does not train a policy in the authors' layout (type {self.type}). Run `vla-mot convert "
            f"checkpoint={name} output=<folder>` first, then `lerobot-train --policy.path=<folder>`."
        )

    def validate_features(self) -> None:
        """Nothing to check: the authors' files name no camera, and the robot's features replace theirs."""


@PreTrainedConfig.register_subclass("qwena1")
@dataclass
class QwenA1Config(ReleasedConfig):
    """The 3B policy, on Qwen3-VL."""

    # Of the authors' names only the number of layers counts, and the weights say it too.
    qwen3_vl_variant: str = "qwen3_vl_28l"
    action_expert_variant: str = "qwen3_28l"


@PreTrainedConfig.register_subclass("interna1")
@dataclass
class InternA1Config(ReleasedConfig):
    """The 2B policy, on InternVL3."""

    # Of the authors' names only the number of layers counts, and the weights say it too.
    internvl_variant: str = "internvl_24l"
    qwen2_variant: str = "qwen2_24l"
    # Of the pictures that the vision tower sees, red, green, blue in [0, 1].
    imagenet_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    imagenet_std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def _complete(config: ReleasedConfig, ours: VlaMotConfig, file: Mapping[str, Any], folder: Path) -> None:
    """Give the robot's features and the processors' folder to LeRobot's commands."""
    if _told(config.output_features) == file.get("output_features"):
        config.output_features = ours.output_features
    else:  # an environment's, which `make_policy` has put here, and which must fit the robot
        ours.output_features = config.output_features
    config.input_features = ours.input_features
    if config.pretrained_path is not None and not config.use_peft:  # an adapter has processors of its own
        config.pretrained_path = with_processor_files(folder)
        config.pretrained_revision = None  # the folder is that revision


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _told(features: Mapping[str, PolicyFeature] | None) -> dict[str, Any]:
    return {
        key: {"type": feature.type.value, "shape": list(feature.shape)}
        for key, feature in (features or {}).items()
    }

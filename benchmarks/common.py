"""What the benchmarks share: how they describe themselves, their arguments, and a model with a batch."""

import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vla_mot.batch import Batch, Observation
from vla_mot.commands.settings import section
from vla_mot.commands.training_settings import model_config
from vla_mot.conf_dir import conf_dir
from vla_mot.errors import ConfigError, unknown_name
from vla_mot.model.config import ModelConfig
from vla_mot.model.model import VlaMotModel
from vla_mot.robots.embodiment import Embodiment


def parse_arguments(words: Sequence[str], **defaults: int | str) -> dict:
    """`key=value` words over defaults, of the defaults' types. Raises ConfigError for an unknown key."""
    options = dict(defaults)
    for word in words:
        key, _, value = word.partition("=")
        if key not in defaults:
            raise ConfigError(unknown_name("argument", key, defaults))
        options[key] = type(defaults[key])(value)
    return options


def describe_machine(device: str) -> str:
    """One line: commit, device, cores, torch."""
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    ).stdout.strip()
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or "cpu"
    return (
        f"commit {commit or 'unknown'}, {device} ({name}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads), torch {torch.__version__}"
    )


def tiny_training_batch(batch: int, device: str) -> tuple[VlaMotModel, Batch]:
    """The demo's model with random weights, and random samples of its shapes."""
    torch.manual_seed(0)
    model = VlaMotModel(_tiny_config()).to(device).train()
    config, views, generator = model.config, 2, torch.Generator().manual_seed(0)
    size = config.view_size
    token_ids, token_mask = model.understanding.tokenize(["pick the red block"] * batch)
    action_mask = torch.zeros(batch, config.chunk_size, config.max_action_dim, dtype=torch.bool)
    action_mask[:, :, :3] = True
    pictures = torch.randint(0, 256, (batch, views, 3, 3, *size), generator=generator, dtype=torch.uint8)
    present = torch.ones(batch, views, dtype=torch.bool)
    observation = Observation(
        images=pictures[:, :, :2],
        view_mask=present,
        state=torch.randn(batch, config.max_state_dim, generator=generator),
        token_ids=token_ids,
        token_mask=token_mask,
    )
    made = Batch(
        observation=observation,
        future=pictures[:, :, 2],
        future_mask=present,
        actions=torch.randn(action_mask.shape, generator=generator) * action_mask,
        action_mask=action_mask,
        index=torch.arange(batch),
    )
    return model, made.to(device)


def _tiny_config() -> ModelConfig:
    """The model of `experiment=conveyor`, as the commands compose it."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("posttrain", ["experiment=conveyor", "output=unused", "data.root=unused"])
    plain = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
    return model_config(plain, section(Embodiment, "embodiment", plain["embodiment"]))

"""Puts a training run together: model, weights, batches, trainer. Its data: `mixing`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vla_mot.commands.console import console
from vla_mot.commands.mixing import Data
from vla_mot.commands.training_settings import StartConfig, TrainingConfig
from vla_mot.errors import ConfigError
from vla_mot.hub.checkpoint import open_checkpoint
from vla_mot.hub.foresight_weights import load_tokenizer
from vla_mot.hub.remote import fetch
from vla_mot.hub.stock import load_backbone
from vla_mot.model.model import VlaMotModel
from vla_mot.train.batches import Batches
from vla_mot.train.flops import cost_of
from vla_mot.train.loop import Trainer
from vla_mot.train.meters import Work
from vla_mot.train.pace import matmul_ceiling
from vla_mot.train.world import World

_FIT_FRAMES = 512  # training frames that the foresight tokenizer's statistics are fitted on


def build_model(config: TrainingConfig) -> VlaMotModel:
    """A model with random weights, seeded by `train.seed`. Raises ConfigError when the options fit no model."""
    torch.manual_seed(config.train.seed)
    try:
        return VlaMotModel(config.model)
    except ConfigError:
        raise
    except Exception as error:  # whatever a library objects to: it was handed nothing but options
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"no model can be built from these options ({reason}); compare conf/model/ and conf/backbone/."
        ) from error


def prepare_weights(
    model: VlaMotModel, data: Data, start: StartConfig, init_from: str | Path | None = None
) -> None:
    """Load the weights of a policy; or give a new model those of its backbone and its autoencoder, where it has some,
    and fit the foresight tokenizer on training frames. All of them or nothing.

    init_from: a checkpoint's folder or Hub repository, in our layout or the authors'. What it was trained with and this
        run does otherwise is printed.
    Raises CheckpointError when weights do not fit or would compute something else, ConfigError when an autoencoder
    would stay random.
    """
    if init_from is not None:
        if changed := open_checkpoint(init_from).load_into(model):
            console.print(f"init_from  trained otherwise until now: {', '.join(changed)}")
        return
    tokenizer, family = model.tokenizer, (model.config.foresight or {}).get("type")
    if tokenizer is not None and tokenizer.pretrained and start.foresight is None:
        raise ConfigError(
            f"foresight tokenizer {family!r} means nothing with random weights: give "
            "foresight.weights=<folder or file>, or start from a policy with init_from=…."
        )
    if start.backbone is not None:
        load_backbone(model, fetch(start.backbone))
    if tokenizer is None:
        return
    if start.foresight is not None:
        load_tokenizer(tokenizer, start.foresight)
    if tokenizer.fits:
        model.fit_tokenizer(data.some_frames(_FIT_FRAMES))


def make_trainer(
    config: TrainingConfig,
    data: Data,
    model: VlaMotModel,
    run: Path,
    plain: Mapping[str, Any],
    world: World,
) -> Trainer:
    """Batches and trainer of one run folder. plain: the configuration as it is written into checkpoints."""
    loader = data.loader(config, model.understanding.tokenize, world)
    validation = data.validation_batches(config, model.understanding.tokenize)
    described = portable(plain) | {"mixture": data.mixture.manifest()}
    return Trainer(
        model,
        data.spec,
        loader,
        validation,
        config.train,
        run,
        described,
        world,
        origins=data.origins,
        work=_work(config, world) if config.train.log.utilisation else None,
    )


def _work(config: TrainingConfig, world: World) -> Work:
    """What a sample costs, and what this rank's device reaches."""
    latents = config.data.latents
    cost = cost_of(config.model, config.train, None if latents is None else getattr(torch, latents))
    return Work(cost.flops, matmul_ceiling(world.device, config.train.parallel.precision))


def portable(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the places of one machine: absolute paths keep only their last name.

    It travels with the policy, perhaps onto the Hub, where nobody else's folders belong.
    """

    def shortened(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): shortened(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [shortened(inner) for inner in value]
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    return {str(key): shortened(value) for key, value in plain.items()}


def describe(config: TrainingConfig, data: Data, model: VlaMotModel, batches: Batches) -> None:
    """Say what is about to be trained, durations in frames and in seconds."""
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    console.print(f"model      {weights:,} trained weights")
    for line in data.describe(config):
        console.print(line)
    samples = config.train.steps * config.train.batch_size
    console.print(
        f"training   {config.train.steps} steps of {config.train.batch_size} samples = "
        f"{samples / data.training_frames(config):.1f} epochs, seed {config.train.seed}"
    )
    if batches.ranks * batches.accumulate > 1:
        console.print(f"step       {batches}, {config.train.parallel.strategy}")

"""How a model is made ready to be trained by one rank or by many. The order of `prepare` is the content of this file.

DDP keeps a whole copy on every rank; FSDP2 keeps a shard of every layer, of its gradients and of its optimizer state,
and gathers a layer while it computes. Both are torch's own.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from vla_mot.errors import ConfigError
from vla_mot.model.model import VlaMotModel
from vla_mot.train.adapters import inject
from vla_mot.train.config import ParallelConfig, TrainConfig
from vla_mot.train.experts import freeze, trained
from vla_mot.train.world import World, shard_mesh

_ENTRIES = ("losses", "prefill", "sample")  # methods of the model that are called besides its forward


def prepare(model: VlaMotModel, config: TrainConfig, world: World) -> nn.Module:
    """Make a model ready, in place; returns what is called for its losses: the model itself, or DDP around it.

    Raises ConfigError when nothing would train, or when the ranks cannot be divided as asked.
    """
    arrange(model, config)
    if config.parallel.compile:
        model.stack.compile_layers()
    if world.size > 1 and config.parallel.strategy == "fsdp":
        return _sharded(model, config.parallel, world)
    model.to(world.device)
    return _replicated(model) if world.size > 1 else model


def arrange(model: VlaMotModel, config: TrainConfig) -> None:
    """What trains and what is recomputed, in place, wherever and by however many the model is trained.

    Raises ConfigError when nothing would train, or when an expert that should train is taught by no loss.
    """
    freeze(model, config.experts)
    inject(model, config.experts, config.seed)
    if not config.foresight_weight:
        model.freeze_foresight()
    _require_taught(model, config)
    model.stack.recompute, model.stack.insulate = config.parallel.recompute, config.insulate


def _require_taught(model: VlaMotModel, config: TrainConfig) -> None:
    """Raise ConfigError for experts that only decay: behind the wall, where no foresight loss reaches them either."""
    if not config.insulate or (config.foresight_weight and model.generation is not None):
        return
    untaught = [name for name, count in trained(model).items() if count and name != "action"]
    if untaught:
        why, more = "the model has no generation expert", ""
        if model.generation is not None:
            why, more = "train.foresight_weight is 0", "train.foresight_weight above 0, "
        frozen = " ".join(f"train.experts.{name}.frozen=true" for name in untaught)
        raise ConfigError(
            f"train.insulate=true sends {', '.join(untaught)} no gradient of the action loss, and there is no "
            f"foresight loss ({why}): nothing would train them. Set train.insulate=false, {more}or {frozen}."
        )


def sharded_parts(model: VlaMotModel) -> list[nn.Module]:
    """What is gathered by itself when its turn comes; the rest of the model is gathered throughout."""
    seeing = [part for part in model.understanding.children() if any(True for _ in part.parameters())]
    return [*seeing, *model.stack.layers]


def _replicated(model: VlaMotModel) -> nn.Module:
    return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


def _sharded(model: VlaMotModel, config: ParallelConfig, world: World) -> nn.Module:
    """Shards from the leaves to the root, so that each part is gathered when its turn comes, and no sooner."""
    mesh = shard_mesh(world, config.shard_ranks)
    for part in sharded_parts(model):
        fully_shard(part, mesh=mesh)
    if model.tokenizer is not None:  # small, frozen and needed by every pass: whole on every rank
        model.tokenizer.to(world.device)
    fully_shard(model, mesh=mesh, ignored_params=model.tokenizer_parameters())
    for name in _ENTRIES:
        register_fsdp_forward_method(model, name)
    return model


@contextmanager
def one_pass(module: nn.Module, *, last: bool) -> Iterator[None]:
    """Around forward and backward of one of a step's passes: gradients travel between ranks in the last one only."""
    quiet: AbstractContextManager[None] = nullcontext()
    if isinstance(module, DistributedDataParallel) and not last:
        quiet = module.no_sync()
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
        module.set_is_last_backward(last)
    with quiet:
        yield


def autocast(config: ParallelConfig, device: str) -> torch.autocast:
    """Products in bfloat16 where `precision` says so; weights stay float32."""
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=config.precision == "bf16")

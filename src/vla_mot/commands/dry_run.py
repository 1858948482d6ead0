"""`dry_run=true`: what a training run would be, said before anything is opened, downloaded or written.

The machine that says it needs neither the ranks nor the device of the run, nor memory for the model.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from rich.table import Table

from vla_mot.commands import training
from vla_mot.commands.console import console
from vla_mot.commands.settings import section
from vla_mot.commands.training_settings import DataConfig, TrainingConfig, model_config
from vla_mot.hub.spec import SamplerConfig
from vla_mot.model.config import ModelConfig
from vla_mot.model.model import VlaMotModel
from vla_mot.options import at_least, fit
from vla_mot.robots.embodiment import Embodiment
from vla_mot.train.batches import Batches
from vla_mot.train.config import TrainConfig
from vla_mot.train.estimate import Memory, estimate
from vla_mot.train.experts import EXPERTS, expert_of
from vla_mot.train.flops import Cost, count_cost
from vla_mot.train.planned import arranged

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_ROWS = {
    "parameters": "weights and buffers",
    "gradients": "of trained weights",
    "optimizer": "its state",
    "average": "averaged weights (train.ema_decay)",
    "gathered": "layers and gradients of other ranks, while they compute",
    "activations": "of one pass, with the batch",
}


@dataclass(frozen=True)
class Plan:
    """What a run computes, without what it reads. latents: of which dtype they are cached; None: they are not."""

    model: ModelConfig
    train: TrainConfig
    latents: torch.dtype | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """From composed configuration, in which no data needs to be given. Raises ConfigError for what does not fit."""
        told = config.get("embodiment")
        embodiment = None if told is None else section(Embodiment, "embodiment", told)
        latents = fit(Literal["float32", "float16"] | None, "data.latents", config["data"].get("latents"))
        return cls(
            model=model_config(config, embodiment),
            train=section(TrainConfig, "train", config["train"]),
            latents=None if latents is None else getattr(torch, latents),
        )

    @property
    def without_data(self) -> TrainingConfig:
        """The run of it that reads nothing."""
        return TrainingConfig(self.model, None, DataConfig(root=None), self.train, SamplerConfig())


def show(config: Mapping[str, Any], ranks: int) -> None:
    """Print how the global batch is made, and tokens, weights, FLOPs and memory of a step on `ranks` ranks.

    config: as composed. Raises ConfigError for what the run itself would refuse: options that fit no model, or a batch
    that does not divide among the ranks.
    """
    at_least(1, {"ranks": ranks})
    plan = Plan.of(config)
    train, latents = plan.train, plan.latents
    batches = Batches.of(train.batch_size, ranks, train.parallel.micro_batch, train.parallel.accumulate)
    with torch.device("meta"):
        model = arranged(training.build_model(plan.without_data), train)
    cost = count_cost(model, train, latents)
    console.print(f"batch      {batches.batch_size} samples per step = {batches}")
    _show_tokens(cost, train)
    console.print(_weights(model))
    _show_flops(cost, batches)
    console.print(_memory(estimate(model, train, batches, latents), batches, train))
    for remark in _remarks(train):
        console.print(remark)


def _show_tokens(cost: Cost, train: TrainConfig) -> None:
    """All cameras and the longest instruction: what is padded or absent is a token too."""
    each = sum(cost.tokens.values())
    parts = ", ".join(f"{segment} {count * train.batch_size:,}" for segment, count in cost.tokens.items())
    draws = f" in {train.action_draws} draws" if train.action_draws > 1 else ""
    console.print(f"tokens     {each * train.batch_size:,} per step: {parts}{draws}; {each:,} per sample")


def _weights(model: VlaMotModel) -> Table:
    trained: Counter[str] = Counter()
    frozen: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        (trained if weight.requires_grad else frozen)[expert_of(name) or "tokenizer"] += weight.numel()
    table = _table("weights", ("trained", "frozen"))
    for owner in (*EXPERTS, "tokenizer"):
        if trained[owner] or frozen[owner]:
            table.add_row(owner, f"{trained[owner]:,}", f"{frozen[owner]:,}")
    table.add_section()
    table.add_row("all", f"{trained.total():,}", f"{frozen.total():,}")
    return table


def _show_flops(cost: Cost, batches: Batches) -> None:
    parts = {"forward": cost.forward, "backward": cost.backward, "encoding frames": cost.encoding}
    told = ", ".join(f"{name} {_flops(count * batches.batch_size)}" for name, count in parts.items() if count)
    console.print(
        f"compute    {_flops(cost.flops * batches.batch_size)} (model FLOPs) per step: {told}; "
        f"{_flops(cost.flops * batches.share)} per rank, {_flops(cost.flops)} per sample"
    )


def _memory(memory: Memory, batches: Batches, train: TrainConfig) -> Table:
    table = _table("memory per rank, estimated", ("",))
    table.add_column("")
    for name, meaning in _ROWS.items():
        if size := getattr(memory, name):
            table.add_row(name, _size(size), meaning)
    table.add_section()
    table.add_row("peak", _size(memory.peak), _how(batches, train))
    return table


def _how(batches: Batches, train: TrainConfig) -> str:
    """What the estimate holds for."""
    parallel = train.parallel
    words = [f"{train.device}, {parallel.precision}", f"micro batch {batches.micro_batch}", train.optimizer]
    if batches.ranks > 1:
        copies = "" if parallel.shard_ranks is None else f" in copies of {parallel.shard_ranks} ranks"
        words.append(f"{parallel.strategy}{copies}")
    if parallel.recompute != "none":
        words.append(f"recompute {parallel.recompute}")
    return "; ".join(words)


def _remarks(train: TrainConfig) -> Iterable[str]:
    yield "The peak is less than the sum where gradients come as activations go."
    if train.parallel.compile:
        yield "Layers are counted as they are without train.parallel.compile, which usually keeps less."
    if torch.device(train.device).type == "cuda":
        yield "Not counted: CUDA's own context, communication buffers, and what its allocator holds unused."


def _table(first: str, numbers: Iterable[str]) -> Table:
    table = Table(title_justify="left")
    table.add_column(first)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def _size(count: float) -> str:
    """`3.4 GiB`."""
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"


def _flops(count: float) -> str:
    """`3.4 TFLOP`."""
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if count < 1000 or unit == "E":
            break
        count /= 1000
    return f"{count:.3g} {unit}FLOP"

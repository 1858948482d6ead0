"""Which weights belong to which expert, which of them train, and how fast.

Heads and embeddings belong to the expert that they feed or read: so every weight of a `VlaMotModel` has one home,
except the foresight tokenizer's, which never train.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from vla_mot.errors import ConfigError
from vla_mot.train.config import ExpertsConfig, ExpertTraining

EXPERTS = ("vision", "understanding", "generation", "action")

_STACKED = re.compile(r"stack\.(?:layers\.\d+\.experts|norms)\.(?P<expert>\w+)\.")
_TEXT = ("understanding.embed_tokens.", "understanding.lm_head.")
_TOKENIZER = "tokenizer."


def expert_of(name: str) -> str | None:
    """The expert of a parameter of a `VlaMotModel`, one of `EXPERTS`; None: the foresight tokenizer's.

    Of a backbone, what reads or writes words is `understanding` and everything else, projector included, `vision`.
    Adapters have the home of the layer that they adapt. Raises AssertionError for a name without a home.
    """
    if stacked := _STACKED.match(name):
        return stacked["expert"]
    if name.startswith(_TOKENIZER):
        return None
    if name.startswith(_TEXT):
        return "understanding"
    if name.startswith("understanding."):
        return "vision"
    owner = name.partition(".")[0]
    assert owner in EXPERTS, f"no expert owns the parameter {name!r}"
    return owner


def training_of(name: str, experts: ExpertsConfig) -> ExpertTraining | None:
    """How the parameter of this name trains; None: not at all, being the foresight tokenizer's."""
    owner = expert_of(name)
    return None if owner is None else getattr(experts, owner)


def freeze(model: nn.Module, experts: ExpertsConfig) -> None:
    """Set `requires_grad` False on the weights of frozen experts.

    What the model itself froze (weights that nobody reads) stays so. Raises ConfigError when nothing would train, or
    where an expert is told how to train that the model does not have.
    """
    there = {expert_of(name) for name, _ in model.named_parameters()}
    for name in EXPERTS:
        if name not in there and getattr(experts, name) != ExpertTraining():
            raise ConfigError(
                f"train.experts.{name} says how an expert trains that the model does not have; leave it out."
            )
    if all(getattr(experts, name).frozen for name in EXPERTS if name in there):
        raise ConfigError("every expert is frozen, so nothing would train; see train.experts.")
    for name, weight in model.named_parameters():
        how = training_of(name, experts)
        if how is None or how.frozen:
            weight.requires_grad_(False)


def trained(model: nn.Module) -> dict[str, int]:
    """Per expert, how many numbers train."""
    counts = dict.fromkeys(EXPERTS, 0)
    for name, weight in model.named_parameters():
        if weight.requires_grad and (owner := expert_of(name)) is not None:
            counts[owner] += weight.numel()
    return counts


@dataclass(frozen=True)
class Group:
    """Parameters that train alike: at `lr_scale` times the learning rate, with weight decay or without."""

    params: list[Tensor]
    decays: bool
    lr_scale: float


def groups(named: Iterable[tuple[str, Tensor]], experts: ExpertsConfig) -> list[Group]:
    """Parameters that require gradients, by rate and decay: matrices decay, vectors do not.

    named: `model.named_parameters()` or a part of it. Where no expert has a rate of its own there are two groups,
    matrices and vectors, each in the model's order; other rates add pairs in the order in which they are met. No
    group is empty.
    """
    found: dict[float, tuple[Group, Group]] = {}
    for name, weight in named:
        if not weight.requires_grad:
            continue
        how = training_of(name, experts)
        assert how is not None, f"{name!r} belongs to the tokenizer, which never trains"
        pair = found.setdefault(how.lr_scale, (Group([], True, how.lr_scale), Group([], False, how.lr_scale)))
        pair[weight.dim() <= 1].params.append(weight)
    return [group for pair in found.values() for group in pair if group.params]

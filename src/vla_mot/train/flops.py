"""What one sample costs: its tokens, and the floating-point operations of a pass over it.

Model FLOPs: the products of forward and backward passes that the algorithm needs, two operations per multiply-add, with
whole attention matrices; what is recomputed to save memory is not counted, and frozen parts need fewer. They are linear
in the samples, so one stands for all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vla_mot.model.config import ModelConfig
from vla_mot.model.model import VlaMotModel
from vla_mot.model.objective import draw_noise, objective
from vla_mot.train.config import TrainConfig
from vla_mot.train.planned import planned_model, stand_in
from vla_mot.train.rehearsal import without_numbers

SEGMENTS = ("understanding", "generation", "state", "action")


@dataclass(frozen=True)
class Cost:
    """Of one sample. tokens: per segment of the sequence, all noise draws included. forward, backward, encoding (of
    frames by the foresight tokenizer): FLOPs."""

    tokens: Mapping[str, int]
    forward: int
    backward: int
    encoding: int

    @property
    def flops(self) -> int:
        """Of one training pass."""
        return self.forward + self.backward + self.encoding


def cost_of(config: ModelConfig, train: TrainConfig, latents: torch.dtype | None = None) -> Cost:
    """What a sample of a run costs. latents: see `planned.stand_in`."""
    return count_cost(planned_model(config, train), train, latents)


def count_cost(model: VlaMotModel, train: TrainConfig, latents: torch.dtype | None = None) -> Cost:
    """What a sample costs a model on the meta device, as `train.planned` makes it.

    Of what `model` can do, only `train.estimate` works afterwards.
    """
    tokens: dict[str, int] = {}

    def note(stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        lengths = {name: hidden.shape[1] for name, hidden in args[0].items()}
        tokens.update(lengths | {"state": 1, "action": lengths["action"] - 1})

    watched = model.stack.register_forward_pre_hook(note, with_kwargs=True)
    recompute, model.stack.recompute = model.stack.recompute, "none"
    encoded = (
        None if model.tokenizer is None else torch.float32
    )  # frames are encoded for themselves, see below
    batch = stand_in(model, 1, "meta", encoded)
    noise, level = draw_noise(batch, train.action_draws, 0, 0, model.config.noise_level)
    forward, losses = count_flops(lambda: model(batch, noise, level))
    backward, _ = count_flops(objective(losses, train.foresight_weight).total.backward)
    model.zero_grad(set_to_none=True)
    model.stack.recompute = recompute
    watched.remove()
    encoding = 0 if latents else _encoding(model)
    return Cost({segment: tokens.get(segment, 0) for segment in SEGMENTS}, forward, backward, encoding)


def _encoding(model: VlaMotModel) -> int:
    """FLOPs of the foresight tokenizer, if there is one, on the three frames of all views."""
    if model.tokenizer is None:
        return 0
    with without_numbers(model.tokenizer):  # it turns autocast off, which knows no meta device
        batch = stand_in(model, 1, "cpu")
        frames = torch.cat((batch.observation.images, batch.future.unsqueeze(2)), dim=2)
        return count_flops(lambda: model.encode_frames(frames))[0]


def count_flops[T](act: Callable[[], T]) -> tuple[int, T]:
    """FLOPs of what `act` does, and what it returns."""
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        result = act()
    return counter.get_total_flops(), result


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    """Scores and their product with the values: `(B, H, Q, d)`, `(B, H, K, d)`, `(B, H, K, d)`."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    """Two products for each one of the forward pass; the kernels' recomputing of scores is not counted."""
    return 2 * _attention(query, key, value)


_ATTENTION = {  # torch counts the kernels of CUDA alone, recomputed scores included
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}

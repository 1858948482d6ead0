"""What a sample costs: tokens and FLOPs, against counting by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.model.tiny import CHUNK, FAMILIES, TEXT, VIEWS, tiny_config
from tests.train.mid_size import whole_batch
from tests.train.runs import train_config
from torch import Tensor, nn
from torch.nn import functional as F

from vla_mot.model.config import ModelConfig
from vla_mot.model.model import VlaMotModel
from vla_mot.train.config import ExpertsConfig, ExpertTraining, ParallelConfig, TrainConfig
from vla_mot.train.experts import freeze
from vla_mot.train.flops import Cost, cost_of

TRAIN = train_config(action_draws=2)
CACHED = torch.float32  # latents that were encoded before


class Products(torch.overrides.TorchFunctionMode):
    """Counts two operations per multiply-add of every product, from the tensors that functions were called with.

    forward; backward: as much again for the gradient of each factor that needs one.
    """

    def __init__(self) -> None:
        self.forward = self.backward = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is F.linear:
            self._add(out.numel() * args[0].shape[-1], *args[:2])
        if func in (F.conv2d, torch.conv2d):
            self._add(out.numel() * math.prod(args[1].shape[1:]), *args[:2])
        if func in (F.conv_transpose2d, torch.conv_transpose2d):
            self._add(args[0].numel() * math.prod(args[1].shape[1:]), *args[:2])
        if func is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            scores = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
            together = query + key.sum() + value.sum()  # the kernel needs all of them for any
            self._add(scores * query.shape[3], together, together)
            self._add(scores * value.shape[3], together, together)
        return out

    def _add(self, products: int, one: Tensor, other: Tensor) -> None:
        self.forward += 2 * products
        self.backward += 2 * products * (one.requires_grad + other.requires_grad)


def by_hand(config: ModelConfig, train: TrainConfig) -> tuple[int, int]:
    """FLOPs of real passes over one sample whose latents are given, forward and backward."""
    model = VlaMotModel(config)
    freeze(model, train.experts)
    batch = whole_batch(model, 1, CACHED)
    noise = torch.zeros(1, train.action_draws, config.chunk_size, config.max_action_dim)
    with Products() as products:
        model.losses(batch, noise, torch.full((1, train.action_draws), 0.5))
    return products.forward, products.backward


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("frozen", [(), ("vision",), ("vision", "understanding", "generation"), ("action",)])
def test_the_passes_cost_their_products(family: str, frozen: tuple[str, ...]) -> None:
    experts = ExpertsConfig(**{name: ExpertTraining(frozen=True) for name in frozen})
    train = replace(TRAIN, experts=experts)
    found = cost_of(tiny_config(family), train, CACHED)
    assert (found.forward, found.backward) == by_hand(tiny_config(family), train)


def test_tokens_are_those_of_the_sequence() -> None:
    assert cost_of(tiny_config(), TRAIN).tokens == {
        "understanding": VIEWS * (4 + 2) + TEXT,
        "generation": VIEWS * 2 * 4,
        "state": 1,
        "action": 2 * CHUNK,
    }


def cost(**changes: Any) -> Cost:
    return cost_of(tiny_config(), replace(TRAIN, **changes), CACHED)


def test_an_absent_generation_expert_costs_nothing() -> None:
    cost, whole = cost_of(tiny_config(generation=None, foresight=None), TRAIN), cost_of(tiny_config(), TRAIN)
    assert cost.tokens == {**whole.tokens, "generation": 0} and cost.encoding == 0
    assert cost.forward < whole.forward and cost.backward < whole.backward


def test_recomputing_is_no_work_of_the_model() -> None:
    assert cost(parallel=ParallelConfig(recompute="full")) == cost()


def test_draws_share_their_prefix() -> None:
    one, two, four = (cost(action_draws=draws) for draws in (1, 2, 4))
    assert four.tokens["action"] == 2 * two.tokens["action"] == 4 * one.tokens["action"]
    assert one.forward < four.forward < 2 * one.forward


def test_encoding_frames_counts_unless_they_are_encoded() -> None:
    encoded, pixels = cost_of(tiny_config(), TRAIN, CACHED), cost_of(tiny_config(), TRAIN)
    assert encoded.encoding == 0 < pixels.encoding
    pictures, kernel, places = VIEWS * 3, 3 * 8 * 8, 16 * 4 * 4
    assert pixels.encoding == 2 * pictures * kernel * places
    assert (pixels.forward, pixels.backward) == (encoded.forward, encoded.backward)


def test_a_layer_of_known_size_costs_what_is_written_about_it() -> None:
    """So that the count by hand is checked, too: 2 · 3 · 5 · 7 operations for (3, 5) · (5, 7)."""
    with Products() as products:
        nn.Linear(5, 7)(torch.zeros(3, 5))
    assert (products.forward, products.backward) == (2 * 3 * 5 * 7, 2 * 3 * 5 * 7)
    with Products() as products:
        q, k = torch.zeros(1, 2, 3, 4, requires_grad=True), torch.zeros(1, 2, 5, 4)
        F.scaled_dot_product_attention(q, k, k)
    scores_and_values = 2 * (2 * 3 * 5 * 4) + 2 * (2 * 3 * 4 * 5)
    assert (products.forward, products.backward) == (scores_and_values, 2 * scores_and_values)

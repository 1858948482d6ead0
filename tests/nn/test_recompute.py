"""Recomputing changes no bit, and really keeps less."""

import weakref
from collections import Counter

import pytest
import torch
from tests.nn.small import GEOMETRY, by_expert, small_stack, small_tokens
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vla_mot.nn.masks import build_attn_mask
from vla_mot.nn.mot import JointTransformer
from vla_mot.nn.recompute import Recompute
from vla_mot.nn.rope import rotation

ALL = ("understanding", "generation", "action")
MODES: tuple[Recompute, ...] = ("none", "full", "selective")
PRODUCTS = ("mm", "_scaled_dot_product_flash_attention_for_cpu")


def total(stack: JointTransformer, precision: torch.dtype = torch.float32) -> Tensor:
    blocks, layout, positions = small_tokens()
    turn = rotation(positions, GEOMETRY.head_dim, GEOMETRY.rope)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        states, _ = stack(by_expert(blocks), turn, build_attn_mask(layout), outputs=ALL)
    return torch.cat([x.float().square().flatten() for x in states.values()]).sum()


def trained_stack(mode: Recompute) -> JointTransformer:
    stack = small_stack().train()
    stack.recompute = mode
    return stack


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES[1:])
def test_recomputing_changes_no_bit(mode: Recompute, precision: torch.dtype) -> None:
    results = []
    for how in ("none", mode):
        stack = trained_stack(how)
        loss = total(stack, precision)
        results.append((loss.detach(), *torch.autograd.grad(loss, list(stack.parameters()))))
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


class Count(TorchDispatchMode):
    """How often each operation ran."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ran[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_only_what_a_mode_keeps_is_not_computed_twice() -> None:
    """In the forward pass, and again before the backward pass of each layer."""
    forward, backward = {}, {}
    for mode in MODES:
        stack = trained_stack(mode)
        with Count() as first:
            loss = total(stack)
        with Count() as second:
            loss.backward()
        forward[mode], backward[mode] = first.ran, second.ran
    for name in PRODUCTS:
        assert backward["selective"][name] == backward["none"][name]
        again = backward["full"][name] - backward["none"][name]
        assert (
            0.9 * forward["none"][name] < again <= forward["none"][name]
        )  # nothing needs a layer's last product
    for name in ("cat", "silu"):
        assert backward["selective"][name] == backward["full"][name] > backward["none"][name]


def kept_bytes(mode: Recompute) -> int:
    """What the graph of one pass holds on to, weights aside."""
    stack = trained_stack(mode)
    weights = {p.untyped_storage().data_ptr() for p in stack.parameters()}
    held: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        keep = total(stack)
    assert keep.requires_grad
    return sum(held.values())


def test_full_recomputing_keeps_the_least() -> None:
    assert kept_bytes("full") < 0.5 * kept_bytes("none")


@pytest.mark.parametrize("kept", [True, False])
def test_keys_of_a_layer_that_nobody_keeps_are_gone_when_it_is_done(kept: bool) -> None:
    stack, found = trained_stack("full"), []
    for layer in stack.layers:
        layer.register_forward_hook(lambda _, __, output: found.append(weakref.ref(output[1][0])))
    blocks, layout, positions = small_tokens()
    turn = rotation(positions, GEOMETRY.head_dim, GEOMETRY.rope)
    run = stack(by_expert(blocks), turn, build_attn_mask(layout), outputs=ALL, keep_cache=kept)
    assert run[0]["action"].requires_grad
    assert [key() is not None for key in found] == [kept] * len(stack.layers)


@pytest.mark.parametrize("mode", MODES[1:])
def test_nothing_is_recomputed_where_nothing_is_trained(mode: Recompute) -> None:
    stack, calls = trained_stack(mode), []
    first: nn.Module = stack.layers[0].experts["action"].mlp
    first.register_forward_pre_hook(lambda *_: calls.append(1))
    total(stack).backward()
    assert len(calls) == 2
    calls.clear()
    total(stack.eval()).backward()
    assert len(calls) == 1
    calls.clear()
    with torch.no_grad():
        total(stack.train())
    assert len(calls) == 1

"""Projections of one input as one product: the same numbers, out of the same memory."""

import pytest
import torch
from tests.model.tiny import backbone_options, tiny_model
from torch import Tensor, nn

from vla_mot.nn.fused import FusedLayer, fuse


@pytest.fixture(params=["qwen3_vl", "internvl3"])  # without and with biases
def layer(request) -> nn.Module:
    model = tiny_model(family=request.param, backbone=backbone_options(request.param))
    return model.stack.layers[1].experts["understanding"]


def place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def parts_of(layer: nn.Module) -> tuple[list[nn.Linear], list[nn.Linear]]:
    attention, mlp = layer.self_attn, layer.mlp
    return [attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]


def test_the_parameters_are_views_of_the_fused_weight(layer):
    fused = FusedLayer.of(layer)
    qkv, gate_up = parts_of(layer)
    weight, bias = fused.qkv.weight, fused.qkv.bias
    assert {place(part.weight) for part in qkv} == {place(weight)}
    assert {place(part.weight) for part in gate_up} == {place(fused.gate_up.weight)}
    assert place(layer.self_attn.o_proj.weight) == place(fused.output.weight)
    assert place(layer.mlp.down_proj.weight) == place(fused.down.weight)
    assert weight.untyped_storage().nbytes() == sum(part.weight.nbytes for part in qkv), "and of nothing else"
    assert (bias is None) == (qkv[0].bias is None)
    if bias is not None:
        assert {place(part.bias) for part in qkv} == {place(bias)}
    with torch.no_grad():
        qkv[1].weight.fill_(3)
    assert (weight[qkv[0].out_features :][: qkv[1].out_features] == 3).all(), "what is loaded is seen"


def test_fused_twice_is_fused_once(layer):
    first, second = FusedLayer.of(layer), FusedLayer.of(layer)
    assert second.qkv.weight.data_ptr() == first.qkv.weight.data_ptr()
    assert second.gate_up.weight.data_ptr() == first.gate_up.weight.data_ptr()


@torch.no_grad()
def test_it_computes_what_the_parts_compute(layer):
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    qkv, _ = parts_of(layer)
    apart, mlp = [part(x) for part in qkv], layer.mlp(x)
    fused = FusedLayer.of(layer)
    for found, expected in zip(fused.project(x, with_query=True), apart, strict=True):
        torch.testing.assert_close(found, expected)
    none, *rest = fused.project(x, with_query=False)
    assert none is None
    for found, expected in zip(rest, apart[1:], strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(fused.mlp(x), mlp)
    torch.testing.assert_close(fused.output(x), layer.self_attn.o_proj(x))


def test_an_adapter_is_to_be_merged_first():
    class Adapted(nn.Linear):
        pass

    with pytest.raises(TypeError, match="got Adapted: merge adapters first"):
        fuse((nn.Linear(4, 4), Adapted(4, 4)))

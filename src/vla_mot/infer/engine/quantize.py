"""Weights of the action expert in 8 bits: K denoising steps read them K times, and little else.

By torchao's weight-only tensors: products are computed in the model's dtype, each weight is rounded within its row. The
model keeps its own weights; the rounded ones are a copy beside them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from vla_mot.errors import ConfigError
from vla_mot.infer.engine.config import Quantize
from vla_mot.nn.fused import FusedLayer
from vla_mot.nn.projection import Projection

EXPERT = "action"


def quantized(layers: Sequence[Mapping[str, FusedLayer]], how: Quantize) -> list[dict[str, FusedLayer]]:
    """The same layers with the action expert's projections rounded.

    Raises ConfigError where torchao is not installed.
    """
    if how == "none":
        return [dict(layer) for layer in layers]
    config = _config(how)
    return [{**layer, EXPERT: _rounded(layer[EXPERT], config)} for layer in layers]


def _config(how: Quantize) -> Any:
    try:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig
    except ImportError as error:
        raise ConfigError(f'engine.quantize={how} needs torchao: pip install "vla_mot[quantize]".') from error
    return Int8WeightOnlyConfig() if how == "int8" else Float8WeightOnlyConfig()


def _rounded(layer: FusedLayer, config: Any) -> FusedLayer:
    return replace(
        layer,
        qkv=_round(layer.qkv, config),
        gate_up=_round(layer.gate_up, config),
        output=_round(layer.output, config),
        down=_round(layer.down, config),
    )


def _round(one: Projection, config: Any) -> Projection:
    """The same map with a rounded weight, as one product: a rounded weight is no matrix that could be cut."""
    from torchao.quantization import quantize_

    columns, depth = one.weight.shape
    linear = nn.Linear(depth, columns, bias=False, device="meta")
    linear.weight = nn.Parameter(one.weight.detach().clone(), requires_grad=False)
    quantize_(linear, config)
    return Projection(linear.weight, one.bias)

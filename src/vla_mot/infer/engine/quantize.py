"""Weights of the action expert in 8 bits: K denoising steps read them K times, and little else.

By torchao's weight-only tensors: products are computed in the model's dtype, each weight is rounded within its row. The
model keeps its own weights; the rounded ones are a copy beside them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from vla_mot.errors import ConfigError
from vla_mot.infer.engine.config import Quantize
from vla_mot.nn.fused import FusedLayer

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
    weight, bias = layer.qkv
    return replace(
        layer,
        qkv=(_round(weight, config).weight, bias),
        gate_up=_round(layer.gate_up, config).weight,
        output=_round(layer.output.weight, config),
        down=_round(layer.down.weight, config),
    )


def _round(weight: Any, config: Any) -> nn.Linear:
    """A linear map whose weight `(out, in)` is rounded, without bias."""
    from torchao.quantization import quantize_

    assert isinstance(weight, Tensor), type(weight)
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    quantize_(linear, config)
    return linear

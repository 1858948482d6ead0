"""Root-mean-square norm whose weights may be wider than what it normalizes.

Legend: `D` width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.RMSNorm):
    """`(…, D)` → `(…, D)` in the dtype of its input.

    Normalizes and multiplies by the weight in float32 and rounds once, at the end: so float32 weights keep their
    worth in a bfloat16 model. (transformers' own norms round before they multiply, and return the weight's dtype.)
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return super().forward(x)
        wide = F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps)
        return wide.to(x.dtype)


def replace_norms(module: nn.Module, stock: type[nn.Module]) -> nn.Module:
    """Put an `RMSNorm` with the same name, weight and epsilon in place of every `stock` norm below `module`.

    stock: a class of transformers with `weight` and `variance_epsilon`. Returns `module`.
    """
    found = [(name, part) for name, part in module.named_modules() if isinstance(part, stock)]
    for name, part in found:
        module.set_submodule(name, like(part))
    return module


def like(stock: nn.Module) -> RMSNorm:
    """An `RMSNorm` that holds the very weight of a transformers norm."""
    weight, eps = stock.weight, stock.variance_epsilon
    assert isinstance(weight, nn.Parameter) and isinstance(eps, float)
    with torch.device("meta"):
        norm = RMSNorm(weight.shape[0], eps=eps)
    norm.weight = weight
    return norm

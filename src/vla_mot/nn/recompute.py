"""Activations that the backward pass computes again instead of keeping them: memory for time."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["none", "full", "selective"]
"""Nothing, everything, or everything but products with weights and attention: what costs the most time per byte."""

_aten = torch.ops.aten
_KEPT = [
    _aten.mm.default,
    _aten.addmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
]


def recomputed[T](how: Recompute, run: Callable[..., T], *args: Any) -> T:
    """`run(*args)`, whose inner activations the backward pass computes again."""
    if how == "none":
        return run(*args)
    if how == "full":
        return checkpoint(run, *args, use_reentrant=False)
    return checkpoint(run, *args, use_reentrant=False, context_fn=_keep_products)


def _keep_products() -> Any:
    return create_selective_checkpoint_contexts(_KEPT)

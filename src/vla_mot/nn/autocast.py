"""Leaving autocast for parts that have a dtype of their own."""

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Around what computes in the dtype of its weights, whatever surrounds it; on any device, `meta` too."""
    if not _has_autocast(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


@torch.compiler.assume_constant_result
def _has_autocast(device_type: str) -> bool:
    """Asked once by a compiler, which cannot look into the answer."""
    return torch.amp.is_autocast_available(device_type)

"""Leaving autocast for parts that have a dtype of their own."""

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Around what computes in the dtype of its weights, whatever surrounds it; on any device, `meta` too."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)

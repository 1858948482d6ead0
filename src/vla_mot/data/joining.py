"""Batches of several robots as one: widths are equal already, camera slots and texts are padded to the widest.

Legend as in `vla_mot.batch`; `V'`/`N'` the most slots and text tokens of the parts.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vla_mot.batch import Batch, Observation

_ABSENT = 255  # what the pixels of an absent camera are; nobody reads them


def join(parts: Sequence[Batch]) -> Batch:
    """Put batches behind one another. A slot or token that a part does not have is masked in its samples."""
    if len(parts) == 1:
        return parts[0]
    observations = [part.observation for part in parts]
    slots = max(seen.images.shape[1] for seen in observations)
    width = max(seen.token_ids.shape[1] for seen in observations)
    parts = [_widened(part, slots, width) for part in parts]
    return _joined(parts, observation=_joined([part.observation for part in parts]))


def _widened(part: Batch, slots: int, width: int) -> Batch:
    """`(B, V, …)` and `(B, N)` → `(B, V', …)` and `(B, N')`."""
    seen = part.observation
    more, longer = slots - seen.images.shape[1], width - seen.token_ids.shape[1]
    if not more and not longer:
        return part
    return replace(
        part,
        observation=replace(
            seen,
            images=_pad(seen.images, more, _ABSENT),
            view_mask=_pad(seen.view_mask, more, False),
            token_ids=_pad(seen.token_ids, longer, 0),
            token_mask=_pad(seen.token_mask, longer, False),
            latents=None if seen.latents is None else _pad(seen.latents, more, 0),
        ),
        future=_pad(part.future, more, _ABSENT),
        future_mask=_pad(part.future_mask, more, False),
        future_latents=None if part.future_latents is None else _pad(part.future_latents, more, 0),
    )


def _pad(values: Tensor, more: int, value: int | bool) -> Tensor:
    """Lengthen axis 1 by `more`."""
    return F.pad(values, (0, 0) * (values.dim() - 2) + (0, more), value=value) if more else values


def _joined[T: (Batch, Observation)](parts: Sequence[T], **others: Any) -> T:
    """Every tensor of the first one, joined with its like in the others."""
    names = [field.name for field in fields(parts[0]) if isinstance(getattr(parts[0], field.name), Tensor)]
    changes: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], **changes, **others)

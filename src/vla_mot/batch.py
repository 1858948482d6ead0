"""What flows between the parts: an observation, a training batch, a chunk of actions.

Legend: `B` batch, `V` camera slots, `H`/`W` pixels, `N` text tokens, `S` padded state dims, `L` chunk steps,
`A` padded action dims. The first of two frames is the *history* (t - m), the second the *present* (t).

All three are frozen and know no sibling; every other package may import them.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


class _Tensors:
    """Moving and slicing for frozen dataclasses of tensors (and of other `_Tensors`, or `None`)."""

    def to(self, device: torch.device | str) -> Self:
        """Return a copy with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device))

    def __getitem__(self, rows: slice | Tensor) -> Self:
        """Return the given samples, with the batch axis kept."""
        return self._map(lambda tensor: tensor[rows])

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        changed: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, _Tensors):
                changed[field.name] = value._map(change)
            elif isinstance(value, Tensor):
                changed[field.name] = change(value)
        return replace(self, **changed)  # type: ignore[type-var]


@dataclass(frozen=True)
class Observation(_Tensors):
    """What the policy sees at time t, in the model's terms.

    images: `(B, V, 2, 3, H, W)` uint8, or float in [0, 1]; frames t - m and t, resized with padding.
    view_mask: `(B, V)` bool, False where a camera is absent (its pixels are ignored).
    state: `(B, S)` float32, normalized, zero-padded.
    token_ids, token_mask: `(B, N)` int64 and bool; the instruction, right-padded.
    latents: `(B, V, 2, C, h, w)` of both frames, float32 or float16, where they were encoded before; then the pixels of
        the first frame are not read. None: the model encodes them.
    """

    images: Tensor
    view_mask: Tensor
    state: Tensor
    token_ids: Tensor
    token_mask: Tensor
    latents: Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Number of samples `B`."""
        return self.state.shape[0]


@dataclass(frozen=True)
class Batch(_Tensors):
    """An observation with what is to be learned from it.

    future: `(B, V, 3, H, W)` frame t + m, in the pixels of `Observation.images`.
    future_mask: `(B, V)` bool, True where the camera is present and t + m lies inside the episode.
    actions: `(B, L, A)` float32, normalized, zero-padded.
    action_mask: `(B, L, A)` bool, True on real steps of real dimensions; all False without action labels.
    index: `(B,)` int64, the global sample index that keys noise and noise levels.
    origin: `(B, 3)` int64, where each sample comes from: dataset of the mixture, episode and frame of the dataset.
    future_latents: `(B, V, C, h, w)` of the future, where it was encoded before; then its pixels are not read.
    """

    observation: Observation
    future: Tensor
    future_mask: Tensor
    actions: Tensor
    action_mask: Tensor
    index: Tensor
    origin: Tensor | None = None
    future_latents: Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Number of samples `B`."""
        return self.observation.batch_size


@dataclass(frozen=True)
class ActionChunk(_Tensors):
    """Predicted actions in the robot's own units.

    actions: `(B, L, D)` float32 with D the embodiment's real action dimensions.
    foresight: `(B, V, C, h, w)` predicted latents of frame t + m; None where nobody asked for them.
    understanding_age: for how many calls the understanding behind it was not renewed (`vla_mot.infer.engine`).
    """

    actions: Tensor
    foresight: Tensor | None
    understanding_age: int = 0

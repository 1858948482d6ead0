"""Latents of the frames of an episode, each encoded once: as the present of one call and as the history of a later.

Legend: `B` robots, `V` camera slots, `C`/`h`/`w` latent channels, rows and columns.
"""

import threading
from collections.abc import Mapping

import torch
from torch import Tensor

from vla_mot.infer.policy import Policy

Frame = tuple[int, Mapping[str, Tensor]]
"""A control step, and what the cameras saw then, `(B, 3, h, w)` each."""


class FrameLatents:
    """Latents `(B, V, C, h, w)` by the control step of their frame. For the loop's and the predicting thread alike."""

    def __init__(self) -> None:
        self._known: dict[int, Tensor] = {}
        self._lock = threading.Lock()

    def of(self, policy: Policy, step: int, images: Mapping[str, Tensor]) -> Tensor:
        """Those of the frames `(B, 3, h, w)` of a step: remembered, or encoded now."""
        with self._lock:
            known = self._known.get(step)
        if known is None:
            known = policy.encode(images)
            with self._lock:
                self._known[step] = known
        return known

    def forget(self, before: int) -> None:
        """Drop the frames of earlier steps."""
        with self._lock:
            for step in [step for step in self._known if step < before]:
                del self._known[step]

    def kept(self, index: Tensor) -> "FrameLatents":
        """The same of only these rows. This one stays as it is: a question under way asks it for the rows it has."""
        found = FrameLatents()
        with self._lock:
            found._known = {step: known[index.to(known.device)] for step, known in self._known.items()}
        return found

    def pair(self, policy: Policy, past: Frame, present: Frame) -> Tensor:
        """`(B, V, 2, C, h, w)` of history and present."""
        return torch.stack([self.of(policy, *frame) for frame in (past, present)], dim=2)

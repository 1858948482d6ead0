"""The plain-transformers-style baseline as a sampler: the way one writes it first, with nothing done for speed.

The layers, the vision tower and the eager attention over a dense float mask are those of `baseline.plain`. The prefix
fills transformers' `DynamicCache`, which is concatenated in every layer of every denoising step and cropped after it;
masks, rotary tables, positions and the embedding of the noise level are made anew in every step; both frames of all
cameras are encoded in every call.

Legend: `B` batch, `P` prefix tokens, `L` chunk steps, `A` action dims, `U` understanding tokens, `D` width.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from baseline.plain import BLOCKS, EXPERTS, PlainModel
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from vla_mot.batch import Observation
from vla_mot.flow.solvers import Solver, integrate
from vla_mot.model.model import VlaMotModel

Compiled = Literal["", "default", "max-autotune"]
"""Not at all, or a mode of `torch.compile`."""
STAGES = ("vision", "encode", "prefill", "denoise")


@dataclass(frozen=True)
class Prefix:
    """Which tokens are cached: whether each is real `(B, P)`, its block `(P,)`, and the last position `(B,)`."""

    valid: Tensor
    block: Tensor
    last: Tensor


class PlainSampler(PlainModel):
    """Samples actions with the weights of `model`, which must not change afterwards.

    compiled: every stage by itself, in that mode of `torch.compile`; transformers' own graph breaks stay.
    Raises ConfigError for a model that the baseline was not written for.
    """

    def __init__(self, model: VlaMotModel, *, compiled: Compiled = "") -> None:
        super().__init__(model)
        self.eval()
        self._narrow(model.stack.dtype)
        for stage in STAGES if compiled else ():
            setattr(self, stage, torch.compile(getattr(self, stage), mode=compiled, dynamic=False))

    @torch.no_grad()
    def sample(
        self, seen: Observation, noise: Tensor, num_steps: int, action_dim: int, solver: Solver = "euler"
    ) -> tuple[Tensor, Tensor]:
        """As `VlaMotModel.sample`: normalized actions `(B, L, A)` and the foresight."""
        cache = DynamicCache()
        before, foresight = self.prefill(seen, self.vision(seen), self.encode(seen), cache)
        real = (torch.arange(noise.shape[-1], device=noise.device) < action_dim).float()

        def velocity_at(x: Tensor, level: Tensor) -> Tensor:
            velocity = self.denoise(before, cache, x, level)
            cache.crop(before.valid.shape[1])
            return velocity * real

        return integrate(velocity_at, noise.float() * real, num_steps, solver), foresight

    def vision(self, seen: Observation) -> Tensor:
        """`(B, U, D)` understanding embeddings."""
        return self._understand(seen)

    def encode(self, seen: Observation) -> Tensor:
        """Latents of both frames of all cameras."""
        return self.encode_frames(seen.images)

    def prefill(
        self, seen: Observation, told: Tensor, latents: Tensor, cache: DynamicCache
    ) -> tuple[Prefix, Tensor]:
        """Pass what does not depend on the noise; fills the cache, and foresees."""
        hidden = [told, self.generation.embed(latents), self.action.embed_state(seen.state)]
        none = torch.ones(seen.batch_size, 0, dtype=torch.bool, device=told.device)
        positions, valid, block = self._places(seen, none)
        tables = self._tables(told, positions, valid, block)
        for number in range(len(self.stacks["understanding"])):
            hidden = self._join(EXPERTS, number, hidden, tables, cache)
        foresight = self.generation.predict(self.norms["generation"](hidden[1]))
        return Prefix(valid, block, positions[0, :, -1]), foresight

    def denoise(self, before: Prefix, cache: DynamicCache, x: Tensor, level: Tensor) -> Tensor:
        """Velocity `(B, L, A)` of noisy actions `(B, L, A)` at levels `(B,)`; leaves them in the cache."""
        hidden = [self.action.embed_actions(x, level)]
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        positions = (before.last[:, None] + real.long().cumsum(1)).expand(3, -1, -1)
        mine = before.block.new_full((x.shape[1],), BLOCKS.index("action"))
        valid, block = torch.cat((before.valid, real), dim=1), torch.cat((before.block, mine))
        tables = self._tables(hidden[0], positions, valid, block)
        for number in range(len(self.stacks["action"])):
            hidden = self._join(("action",), number, hidden, tables, cache)
        return self.action.predict(self.norms["action"](hidden[0]))

    def _narrow(self, dtype: torch.dtype) -> None:
        """Give the stock norms weights of the layers' dtype: transformers multiplies by them, and returns theirs.

        Where ours stay float32 in a bfloat16 model, these are copies.
        """
        for module in (*self.stacks.modules(), *self.norms.modules()):
            weight = getattr(module, "weight", None)
            if isinstance(weight, nn.Parameter) and weight.dtype != dtype:
                module.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)

"""What is exported: the stages of a model as modules that take tensors and give tensors.

    encode    frames ─────────────────────────────────────────────────→ frame_latents    (where `latents` are wanted)
    prefill   images, view_mask, state, token_ids, token_mask ────────→ keys, values, valid, last_position, foresight
    denoise   keys, values, valid, last_position, x, noise_level ─────→ velocity
    sample    images, view_mask, state, token_ids, token_mask, noise ─→ actions, foresight

`sample` is prefill and all steps of the sampler in one. With `latents`, prefill and sample take the present frame alone
and the latents of both frames, which *encode* makes, once per frame. A model without generation expert gives no
foresight.

Legend: `B` batch, `V` views, `N` text tokens, `S` state dims, `E` layers, `K` prefix tokens, `G` KV heads,
`d` head dim, `L` chunk steps, `A` action dims, `C`/`h`/`w` latent channels, rows and columns, `H`/`W` pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vla_mot.batch import Observation
from vla_mot.flow.solvers import Solver
from vla_mot.model.model import Prefix, VlaMotModel
from vla_mot.nn.cache import KVCache
from vla_mot.nn.masks import TokenLayout

StageName = Literal["encode", "prefill", "denoise", "sample"]
PREFIX = ("keys", "values", "valid", "last_position")
"""What denoising reads of a prefix."""
SEEN = ("images", "view_mask", "state", "token_ids", "token_mask")
"""What a stage is given of an observation."""


class Stage(nn.Module):
    """A module whose arguments and results have names. model: holds the weights, shared."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __init__(self, model: VlaMotModel) -> None:
        super().__init__()
        self.model = model

    @torch.no_grad()
    def named(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run it: argument → tensor, others are left out; result → tensor."""
        return dict(zip(self.outputs, self(*(given[name] for name in self.inputs)), strict=True))


class Encode(Stage):
    """Frames `(B, V, 3, H, W)` → latents `(B, V, C, h, w)` float32."""

    inputs, outputs = ("frames",), ("frame_latents",)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        return (self.model.encode_frames(frames.unsqueeze(2)).squeeze(2).float(),)


class Prefill(Stage):
    """Everything that does not depend on the noise.

    images `(B, V, 2, 3, H, W)`, view_mask `(B, V)` bool, state `(B, S)` normalized, token_ids and token_mask `(B, N)`
    → keys and values `(E, B, K, G, d)` in the weights' dtype, valid `(B, K)` bool, last_position `(B,)` int64,
    foresight `(B, V, C, h, w)` float32. With latents: images `(B, V, 3, H, W)` and latents `(B, V, 2, C, h, w)`.
    """

    inputs: tuple[str, ...] = SEEN
    outputs: tuple[str, ...] = (*PREFIX, "foresight")

    def __init__(self, model: VlaMotModel, latents: bool = False) -> None:
        super().__init__(model)
        if latents:
            self.inputs = (*SEEN, "latents")
        if model.generation is None:
            self.outputs = PREFIX

    @torch.no_grad()
    def layout(self, given: Mapping[str, Tensor]) -> TokenLayout:
        """Of the prefix that it makes of these arguments."""
        images = _frames(given["images"], given.get("latents"))
        rest = {name: given[name] for name in self.inputs[1:]}
        return self.model.prefill(Observation(images=images, **rest)).layout

    def forward(
        self,
        images: Tensor,
        view_mask: Tensor,
        state: Tensor,
        token_ids: Tensor,
        token_mask: Tensor,
        latents: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        seen = Observation(_frames(images, latents), view_mask, state, token_ids, token_mask, latents)
        prefix = self.model.prefill(seen)
        stacked = torch.stack(prefix.kv_cache.keys), torch.stack(prefix.kv_cache.values)
        return *stacked, prefix.layout.valid, prefix.last_position, *_foreseen(prefix.foresight)


class Denoise(Stage):
    """Velocity `(B, L, A)` float32 of x `(B, L, A)` float32 at noise_level `(B,)` float32, against what prefill gave.

    layout: of the prefix; all of it but `valid` is the model's and not the observation's. kept: the first action
    dimensions, of which a velocity is given; the others' is 0, and x should be, too.
    """

    inputs, outputs = (*PREFIX, "x", "noise_level"), ("velocity",)
    block: Tensor
    group: Tensor
    causal: Tensor
    real: Tensor

    def __init__(self, model: VlaMotModel, layout: TokenLayout, kept: int) -> None:
        super().__init__(model)
        real = (torch.arange(model.config.max_action_dim, device=layout.block.device) < kept).float()
        parts = {"block": layout.block, "group": layout.group, "causal": layout.causal, "real": real}
        for name, part in parts.items():
            self.register_buffer(name, part, persistent=False)

    def forward(
        self,
        keys: Tensor,
        values: Tensor,
        valid: Tensor,
        last_position: Tensor,
        x: Tensor,
        noise_level: Tensor,
    ) -> tuple[Tensor, ...]:
        layout = TokenLayout(self.block, self.group, self.causal, valid)
        prefix = Prefix(KVCache(keys.unbind(), values.unbind()), layout, last_position, foresight=None)
        return (self.model.denoise(prefix, x, noise_level) * self.real,)


class Sample(Stage):
    """What prefill takes and noise `(B, L, A)` float32 → normalized actions `(B, L, A)` and foresight."""

    inputs: tuple[str, ...] = (*SEEN, "noise")
    outputs: tuple[str, ...] = ("actions", "foresight")

    def __init__(self, model: VlaMotModel, flow: "Flow", latents: bool = False) -> None:
        super().__init__(model)
        if latents:
            self.inputs = (*SEEN, "noise", "latents")
        if model.generation is None:
            self.outputs = ("actions",)
        self.flow = flow

    def forward(
        self,
        images: Tensor,
        view_mask: Tensor,
        state: Tensor,
        token_ids: Tensor,
        token_mask: Tensor,
        noise: Tensor,
        latents: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        seen, flow = (
            Observation(_frames(images, latents), view_mask, state, token_ids, token_mask, latents),
            self.flow,
        )
        actions, foresight = self.model.sample(
            seen, noise, flow.num_steps, flow.action_dim, solver=flow.solver
        )
        return actions, *_foreseen(foresight)


@dataclass(frozen=True)
class Flow:
    """How noise becomes actions. action_dim: the robot's real action dimensions, the first ones."""

    num_steps: int
    solver: Solver
    action_dim: int


def _foreseen(foresight: Tensor | None) -> tuple[Tensor, ...]:
    return () if foresight is None else (foresight,)


def _frames(images: Tensor, latents: Tensor | None) -> Tensor:
    """`(B, V, 2, 3, H, W)`: where latents are given, the present frame twice, since nobody reads the first one."""
    return images if latents is None else images.unsqueeze(2).expand(-1, -1, 2, -1, -1, -1)

"""What turns latents, states and noisy actions into tokens, and tokens into predictions.

Legend: `B` batch, `V` views, `T` 2 times (history, present), `C` latent channels, `h`/`w` latent rows and
columns, `r`/`c` token rows and columns (h and w over the stride), `D` expert width, `L` chunk, `A` action dims.
"""

from typing import Literal

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from vla_mot.errors import ConfigError
from vla_mot.flow.matching import noise_level_embedding
from vla_mot.nn.projection import Projection, side_by_side


class GenerationHead(nn.Module):
    """Latents of t − m and t → tokens in order (view, time, row, column); their outputs → latents of t + m.

    history: see `ModelConfig`.
    """

    def __init__(
        self,
        channels: int,
        latent_size: tuple[int, int],
        stride: int,
        width: int,
        history: Literal["past", "present"] = "past",
    ) -> None:
        super().__init__()
        self.history = history
        if any(side % stride for side in latent_size):
            raise ConfigError(
                f"foresight_stride {stride} must divide the latents' {latent_size}; see conf/model/."
            )
        self.grid = (latent_size[0] // stride, latent_size[1] // stride)
        self.in_proj = nn.Conv2d(channels, width, kernel_size=1)
        self.downsample = nn.Conv2d(width, width, kernel_size=stride, stride=stride)
        self.upsample = nn.ConvTranspose2d(width, width, kernel_size=stride, stride=stride)
        self.norm = nn.LayerNorm(width)
        self.out_proj = nn.Linear(width, channels)

    @property
    def tokens_per_view(self) -> int:
        """Tokens of one view over both times."""
        return 2 * self.grid[0] * self.grid[1]

    def embed(self, latents: Tensor) -> Tensor:
        """`(B, V, T, C, h, w)` → `(B, V·T·r·c, D)`, in the weights' dtype."""
        latents, batch, views = self._read(latents), *latents.shape[:2]
        tokens = self.downsample(self.in_proj(latents.flatten(0, 2))).to(latents.dtype)
        return rearrange(tokens, "(b v t) d r c -> b (v t r c) d", b=batch, v=views)

    @torch.no_grad()
    def patch_map(self) -> Projection:
        """`in_proj` and `downsample`, between which there is nothing, as one map of a token's latents.

        `(…, C·s·s)` → `(…, D)` in the weights' dtype, s the stride.
        """
        inner, outer = self.in_proj.weight.float().flatten(1), self.downsample.weight.float()
        weight = torch.einsum("odij,dc->ocij", outer, inner).flatten(1)
        assert self.in_proj.bias is not None and self.downsample.bias is not None
        bias = torch.einsum("odij,d->o", outer, self.in_proj.bias.float()) + self.downsample.bias.float()
        weight, bias = weight.to(self.in_proj.weight.dtype), bias.to(self.in_proj.weight.dtype)
        return Projection(weight, bias, side_by_side(weight))

    def embed_by_map(self, latents: Tensor, patch_map: Projection) -> Tensor:
        """`embed` by what `patch_map` returned; equal but for rounding, and a fraction of the operations."""
        rows, cols = self.grid
        patches = rearrange(self._read(latents), "b v t c (r i) (q j) -> b (v t r q) (c i j)", r=rows, q=cols)
        return patch_map(patches)

    def _read(self, latents: Tensor) -> Tensor:
        """Of both times, in the weights' dtype."""
        if self.history == "present":
            latents = latents[:, :, 1:].expand_as(latents)
        return latents.to(self.in_proj.weight.dtype)

    def freeze_outputs(self) -> None:
        """Keep what only `predict` reads as it is."""
        for module in (self.upsample, self.norm, self.out_proj):
            module.requires_grad_(False)

    def predict(self, outputs: Tensor) -> Tensor:
        """Expert outputs `(B, V·T·r·c, D)` → predicted latents `(B, V, C, h, w)` float32, all in one pass."""
        rows, cols = self.grid
        mean = reduce(outputs, "b (v t r c) d -> b v d r c", "mean", t=2, r=rows, c=cols)
        grown = self.upsample(mean.flatten(0, 1).to(self.upsample.weight.dtype))
        return self._latents(grown.movedim(1, -1).unflatten(0, mean.shape[:2]))

    @torch.no_grad()
    def cell_map(self) -> Projection:
        """`upsample` as one map, `(…, D)` → `(…, D·s·s)`: the cells of a token's latents do not overlap another's."""
        weight = self.upsample.weight.flatten(1).t()
        return Projection(weight, products=side_by_side(weight))

    def predict_by_map(self, outputs: Tensor, cell_map: Projection) -> Tensor:
        """`predict` by what `cell_map` returned; equal but for rounding."""
        rows, cols = self.grid
        mean = reduce(outputs, "b (v t r c) d -> b v r c d", "mean", t=2, r=rows, c=cols)
        grown = cell_map(mean.to(cell_map.weight.dtype))
        side = self.upsample.kernel_size[0]
        cells = rearrange(grown, "b v r c (d i j) -> b v (r i) (c j) d", i=side, j=side)
        assert self.upsample.bias is not None
        return self._latents(cells + self.upsample.bias)

    def _latents(self, grown: Tensor) -> Tensor:
        """`(B, V, h, w, D)` → `(B, V, C, h, w)` float32."""
        return self.out_proj(self.norm(grown)).movedim(-1, 2).float()


class ActionHead(nn.Module):
    """State and noisy actions → tokens of the action expert; its outputs → velocity."""

    def __init__(self, state_dim: int, action_dim: int, width: int, periods: tuple[float, float]) -> None:
        super().__init__()
        self.periods = periods
        self.state_proj = nn.Linear(state_dim, width)
        self.in_proj = nn.Linear(action_dim, width)
        self.time_mlp_in = nn.Linear(2 * width, width)
        self.time_mlp_out = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, action_dim)

    def embed_state(self, state: Tensor) -> Tensor:
        """`(B, S)` → one token `(B, 1, D)`, in the weights' dtype."""
        dtype = self.state_proj.weight.dtype
        return self.state_proj(state.to(dtype)).to(dtype).unsqueeze(1)

    def embed_actions(self, x: Tensor, noise_level: Tensor) -> Tensor:
        """Noisy actions `(B, L, A)` at levels `(B,)` → `(B, L, D)`, in the weights' dtype."""
        width, dtype = self.in_proj.out_features, self.in_proj.weight.dtype
        level = noise_level_embedding(noise_level, width, *self.periods).to(dtype)
        joined = torch.cat((self.in_proj(x.to(dtype)), level[:, None].expand(-1, x.shape[1], -1)), dim=-1)
        return self.time_mlp_out(F.silu(self.time_mlp_in(joined))).to(dtype)

    def level_terms(self, levels: Tensor) -> Tensor:
        """What `(E,)` noise levels add to the hidden layer of `embed_actions`, `(E, D)`: known before any action is."""
        width, dtype = self.in_proj.out_features, self.in_proj.weight.dtype
        told = noise_level_embedding(levels, width, *self.periods).to(dtype)
        return F.linear(told, self.time_mlp_in.weight[:, width:], self.time_mlp_in.bias)

    def embed_with_term(self, x: Tensor, term: Tensor) -> Tensor:
        """`embed_actions` of `(B, L, A)` at the level whose `(D,)` term is given; equal but for rounding."""
        width, dtype = self.in_proj.out_features, self.in_proj.weight.dtype
        joined = F.linear(self.in_proj(x.to(dtype)), self.time_mlp_in.weight[:, :width]) + term
        return self.time_mlp_out(F.silu(joined)).to(dtype)

    def predict(self, outputs: Tensor) -> Tensor:
        """Expert outputs `(…, D)` → velocities `(…, A)` float32."""
        return self.out_proj(outputs.to(self.out_proj.weight.dtype)).float()

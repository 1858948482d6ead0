"""Qwen3-VL's vision tower over equally sized views: transformers' own modules, run one batch at a time.

The stock forward flattens all pictures into one sequence and attends picture by picture. Here every view has the
same size, so attention is one batched call, and what depends on the size alone is computed once.

Legend: `n` pictures, `P` patches per picture, `T` = P / merge² image tokens, `F` numbers per patch, `E` vision width,
`D` text width, `d` head dim.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel, apply_rotary_pos_emb_vision

from vla_mot.errors import ConfigError
from vla_mot.options import at_least

ROPE_BASE = 10000.0


@dataclass(frozen=True)
class VisionConfig:
    """Vision tower. The defaults are Qwen3-VL-2B's."""

    depth: int = 24
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_heads: int = 16
    patch_size: int = 16
    merge_size: int = 2
    temporal_patch_size: int = 2
    num_position_embeddings: int = 2304
    deepstack_layers: tuple[int, ...] = (5, 11, 17)

    def __post_init__(self) -> None:
        counts = {key: value for key, value in asdict(self).items() if isinstance(value, int)}
        at_least(1, {f"backbone.vision.{key}": value for key, value in counts.items()})
        if self.hidden_size % (4 * self.num_heads):  # rows and columns turn half of a head each, in pairs
            raise ConfigError(
                f"backbone.vision.num_heads must divide hidden_size = {self.hidden_size} into heads of a multiple of "
                f"4, got {self.num_heads}."
            )


class VisionTower(Qwen3VLVisionModel):
    """Weights, names and arithmetic of the stock tower for pictures of one grid of patches (rows, columns)."""

    corners: Tensor
    shares: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(self, config: VisionConfig, out_size: int, grid: tuple[int, int]) -> None:
        super().__init__(_hf_config(config, out_size))
        del self.rotary_pos_emb  # its angles are in `cos` and `sin`
        self.sizes, self.grid = config, grid
        for name, table in self._tables(None).items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, patches: Tensor, deepstack: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`(n, P, F)` patches in merge-block order → `(n, T, D)` image tokens, and as many of each DeepStack layer.

        deepstack: False leaves those features out.
        """
        count = patches.shape[0]
        # The stock patch embedding is a convolution whose kernel covers the patch: a matrix product, faster as such.
        kernel: Any = self.patch_embed.proj
        x = F.linear(patches.to(kernel.weight.dtype), kernel.weight.flatten(1), kernel.bias)
        x = x + self._positions()
        features = []
        layers = self.sizes.deepstack_layers if deepstack else ()
        for i, block in enumerate(self.blocks):
            x = x + self._attend(block.attn, block.norm1(x))
            x = x + block.mlp(block.norm2(x))
            if i in layers:
                merger = self.deepstack_merger_list[layers.index(i)]
                features.append(merger(x.flatten(0, 1)).unflatten(0, (count, -1)))
        return self.merger(x.flatten(0, 1)).unflatten(0, (count, -1)), tuple(features)

    def reset_buffers(self, device: torch.device | str) -> None:
        """Compute the tables of the grid anew on `device`."""
        for name, table in self._tables(device).items():
            setattr(self, name, table)

    def _positions(self) -> Tensor:
        """`(P, E)`: the learned square of positions, bilinearly resized to the grid, in merge-block order."""
        weight = self.pos_embed.weight
        parts = self.pos_embed(self.corners) * self.shares.to(weight.dtype)[..., None]
        rows, cols = self.grid
        side = self.sizes.merge_size
        resized = parts[0] + parts[1] + parts[2] + parts[3]
        return rearrange(
            resized, "(h a w b) e -> (h w a b) e", h=rows // side, a=side, w=cols // side, b=side
        )

    def _attend(self, attention: Any, x: Tensor) -> Tensor:
        """Full attention inside each picture, `(n, P, E)` → `(n, P, E)`, with the stock module's weights."""
        query, key, value = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
        query, key = apply_rotary_pos_emb_vision(query, key, self.cos, self.sin)
        heads = (part.transpose(1, 2) for part in (query, key, value))
        return attention.proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))

    def _tables(self, device: torch.device | str | None) -> dict[str, Tensor]:
        """What the grid alone decides; device None is torch's default.

        corners, shares: `(4, P)` the four learned positions around each patch and their weights, row by row.
        cos, sin: `(P, d)` float32 rotations by row and column, in merge-block order.
        """
        rows, cols = self.grid
        side, merge = int(self.sizes.num_position_embeddings**0.5), self.sizes.merge_size
        low, high, part = [], [], []
        for count in self.grid:
            at = torch.linspace(0, side - 1, count, device=device)
            low.append(at.int())
            high.append((at.int() + 1).clip(max=side - 1))
            part.append(at - at.int())
        down, right = part[0][:, None], part[1][None]
        corners = [r[:, None] * side + c[None] for r in (low[0], high[0]) for c in (low[1], high[1])]
        shares = [r * c for r in (1 - down, down) for c in (1 - right, right)]
        order = torch.arange(rows * cols, device=device).view(rows, cols)
        order = rearrange(order, "(h a) (w b) -> (h w a b)", a=merge, b=merge)
        half = self.sizes.hidden_size // self.sizes.num_heads // 2
        frequency = 1.0 / ROPE_BASE ** (torch.arange(0, half, 2, dtype=torch.float32, device=device) / half)
        angles = torch.outer(torch.arange(max(rows, cols), device=device).float(), frequency)
        angles = torch.cat((angles[order // cols], angles[order % cols]) * 2, dim=-1)
        return {
            "corners": torch.stack(corners).flatten(1).long(),
            "shares": torch.stack(shares).flatten(1),
            "cos": angles.cos(),
            "sin": angles.sin(),
        }


def _hf_config(config: VisionConfig, out_size: int) -> Qwen3VLVisionConfig:
    return Qwen3VLVisionConfig(
        depth=config.depth,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_heads,
        patch_size=config.patch_size,
        spatial_merge_size=config.merge_size,
        temporal_patch_size=config.temporal_patch_size,
        out_hidden_size=out_size,
        num_position_embeddings=config.num_position_embeddings,
        deepstack_visual_indexes=list(config.deepstack_layers),
    )

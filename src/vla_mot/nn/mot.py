"""The Mixture of Transformers: per expert its own weights, one attention over all tokens.

At every layer each expert normalizes and projects its own tokens; queries, keys and values of all experts are
concatenated in block order and attended together; each expert then applies its own output projection and MLP.

Legend: `B` batch, `S` tokens of one expert, `Q`/`K` queries and keys over all experts (with a cache, `K` counts
the cached tokens too), `D_e` width of expert e, `H` heads, `G` KV heads, `d` head dim.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vla_mot.nn.expert import Geometry
from vla_mot.nn.rope import Rotation, rotate


@dataclass(frozen=True)
class KVCache:
    """Keys (rotated) and values of a prefix, per layer `(B, K, G, d)`. Read-only: `joint` never writes to it."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def __len__(self) -> int:
        return self.keys[0].shape[1]


class JointLayer(nn.Module):
    """Layer i of every expert, attended together."""

    def __init__(self, geometry: Geometry, experts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.geometry = geometry
        self.experts = nn.ModuleDict(experts)

    def forward(
        self,
        hidden: Mapping[str, Tensor],
        turn: Rotation,
        attn_mask: Tensor,
        past: tuple[Tensor, Tensor] | None,
        outputs: Collection[str],
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        """Return the new hidden states of `outputs` and this layer's keys and values (cached ones included).

        hidden: expert → `(B, S, D_e)`, in block order. turn: of these tokens. attn_mask: `(B, Q, K)` bool.
        """
        spans, queries, keys, values, start = {}, [], [], [], 0
        for name, x in hidden.items():
            spans[name] = slice(start, start := start + x.shape[1])
            expert: Any = self.experts[name]
            attention, normed = expert.self_attn, expert.input_layernorm(x)
            keys.append(self._heads(attention, "k", normed))
            values.append(self._heads(attention, "v", normed))
            if name in outputs:
                queries.append(rotate(self._heads(attention, "q", normed), turn[spans[name]]))
        key, value = rotate(torch.cat(keys, dim=1), turn), torch.cat(values, dim=1)
        if past is not None:
            key, value = torch.cat((past[0], key), dim=1), torch.cat((past[1], value), dim=1)
        if not queries:
            return {}, (key, value)
        rows = [attn_mask[:, spans[name]] for name in outputs]
        mask = attn_mask if len(rows) == len(hidden) else torch.cat(rows, dim=1)
        attended = attend(torch.cat(queries, dim=1), key, value, mask)
        return self._finish(hidden, attended, outputs), (key, value)

    def _heads(self, attention: Any, kind: str, x: Tensor) -> Tensor:
        """Project `(B, S, D_e)` to heads `(B, S, H or G, d)`, with the per-head norm where there is one."""
        projected = getattr(attention, f"{kind}_proj")(x).unflatten(-1, (-1, self.geometry.head_dim))
        norm = getattr(attention, f"{kind}_norm", None)
        return projected if norm is None else norm(projected)

    def _finish(
        self, hidden: Mapping[str, Tensor], attended: Tensor, outputs: Collection[str]
    ) -> dict[str, Tensor]:
        """Output projection, residuals and MLP of each expert; `attended` is `(B, Q, H·d)`."""
        done = {}
        parts = attended.split([hidden[name].shape[1] for name in outputs], dim=1)
        for name, part in zip(outputs, parts, strict=True):
            layer: Any = self.experts[name]
            x = hidden[name] + layer.self_attn.o_proj(part)
            done[name] = x + layer.mlp(layer.post_attention_layernorm(x))
        return done


class JointTransformer(nn.Module):
    """The stack of joint layers and each expert's final norm.

    layers: per expert, its layers in order. norms: per expert, its final norm. Both in block order.
    """

    def __init__(
        self,
        geometry: Geometry,
        layers: Mapping[str, list[nn.Module]],
        norms: Mapping[str, nn.Module],
    ) -> None:
        super().__init__()
        self.geometry = geometry
        for name, stack in layers.items():
            assert len(stack) == geometry.num_layers, (
                f"{name} has {len(stack)} layers, not {geometry.num_layers}"
            )
        self.layers = nn.ModuleList(
            JointLayer(geometry, {name: stack[i] for name, stack in layers.items()})
            for i in range(geometry.num_layers)
        )
        self.norms = nn.ModuleDict(norms)
        self.gradient_checkpointing = False

    @property
    def dtype(self) -> torch.dtype:
        """Of the projections, and so of what runs through the stack; the heads' may be wider."""
        return next(p.dtype for p in self.parameters() if p.dim() > 1)

    def forward(
        self,
        hidden: Mapping[str, Tensor],
        turn: Rotation,
        attn_mask: Tensor,
        *,
        outputs: Collection[str],
        kv_cache: KVCache | None = None,
        injected: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> tuple[dict[str, Tensor], KVCache]:
        """Run all layers.

        hidden: expert → `(B, S, D_e)` embeddings, in block order; experts without tokens are left out.
        turn: rotation of these tokens. attn_mask: `(B, Q, K)` bool with K = cached + these tokens.
        outputs: experts whose final (normed) states are wanted; the last layer of the others stops at its keys
        and values. injected: expert → tensors like its embeddings; the i-th is added after layer i (DeepStack).
        Returns those states and the cache with these tokens appended.
        """
        wanted = tuple(name for name in hidden if name in outputs)
        keys, values, last = [], [], len(self.layers) - 1
        hidden = {name: x.to(self.dtype) for name, x in hidden.items()}
        for i, layer in enumerate(self.layers):
            past = None if kv_cache is None else (kv_cache.keys[i], kv_cache.values[i])
            needed = wanted if i == last else tuple(hidden)
            hidden, (key, value) = self._run(layer, hidden, turn, attn_mask, past, needed)
            for name, added in (injected or {}).items():
                if i < len(added) and name in hidden:
                    hidden = {**hidden, name: hidden[name] + added[i]}
            keys.append(key)
            values.append(value)
        states = {name: self.norms[name](hidden[name]) for name in wanted}
        return states, KVCache(tuple(keys), tuple(values))

    def _run(self, layer: nn.Module, *args: object) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(layer, *args, use_reentrant=False)
        return layer(*args)


def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor) -> Tensor:
    """Grouped-query attention: `(B, Q, H, d)`, `(B, K, G, d)` ×2 and `(B, Q, K)` bool → `(B, Q, H·d)`.

    A query that may attend to nothing (padding) gets zeros, and no gradient.
    """
    repeats = query.shape[2] // key.shape[2]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=2), value.repeat_interleave(repeats, dim=2)
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=attn_mask.unsqueeze(1)
    )
    return out.transpose(1, 2).flatten(2)

"""The Mixture of Transformers: per expert its own weights, one attention over all tokens.

At every layer each expert normalizes and projects its own tokens; queries, keys and values of all experts are
concatenated in block order and attended together; each expert then applies its own output projection and MLP.

Legend: `B` batch, `S` tokens of one expert, `Q`/`K` queries and keys over all experts (with a cache, `K` counts
the cached tokens too), `D_e` width of expert e, `H` heads, `G` KV heads, `d` head dim.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from vla_mot.nn.attention import attend, attend_insulated
from vla_mot.nn.cache import Cache, KVCache, Past
from vla_mot.nn.expert import Geometry
from vla_mot.nn.fused import FusedLayer
from vla_mot.nn.recompute import Recompute, recomputed
from vla_mot.nn.rope import Rotation, rotate

_INSULATED = "action"
"""The expert, last in block order, whose loss may be kept from the others' weights."""

_MOST_PROGRAMS = 64


Visible = Tensor | Mapping[str, int]
"""What the queries see: a mask `(B, Q, K)` bool, True = may attend; or, where nothing is padding, per expert how many
of the keys its tokens see, from the first on."""


class JointLayer(nn.Module):
    """Layer i of every expert, attended together."""

    def __init__(self, geometry: Geometry, experts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.geometry = geometry
        self.experts = nn.ModuleDict(experts)
        self.program: Callable[..., Any] = _run_layer

    def forward(
        self,
        hidden: Mapping[str, Tensor],
        turn: Rotation,
        attn_mask: Visible,
        past: Past | None,
        outputs: Collection[str],
        insulate: bool = False,
        recompute: Recompute = "none",
        fused: Mapping[str, FusedLayer] | None = None,
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        """Return the new hidden states of `outputs` and this layer's keys and values (cached ones included).

        hidden: expert → `(B, S, D_e)`, in block order. turn: of these tokens.
        insulate, recompute, fused: see `JointTransformer`.
        """
        return self.program(self, recompute, hidden, turn, attn_mask, past, outputs, insulate, fused or {})

    def joint(
        self,
        hidden: Mapping[str, Tensor],
        turn: Rotation,
        attn_mask: Visible,
        past: Past | None,
        outputs: Collection[str],
        insulate: bool,
        fused: Mapping[str, FusedLayer],
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        """The computation of `forward`, which says how it is run."""
        spans, queries, keys, values, start = {}, {}, [], [], 0
        for name, x in hidden.items():
            spans[name] = slice(start, start := start + x.shape[1])
            expert: Any = self.experts[name]
            attention, normed = expert.self_attn, expert.input_layernorm(x)
            query, own_key, own_value = _project(attention, normed, name in outputs, fused.get(name))
            keys.append(self._heads(attention, "k", own_key))
            values.append(self._heads(attention, "v", own_value))
            if query is not None:
                queries[name] = rotate(self._heads(attention, "q", query), turn[spans[name]])
        key, value = rotate(torch.cat(keys, dim=1), turn), torch.cat(values, dim=1)
        if past is not None:
            key, value = past.extend(key, value)
        if not queries:
            return {}, (key, value)
        if isinstance(attn_mask, Mapping):
            seen = ((query, attn_mask[name]) for name, query in queries.items())
            parts = [attend(query, key[:, :count], value[:, :count], None) for query, count in seen]
            return self._finish(hidden, torch.cat(parts, dim=1), outputs, fused), (key, value)
        rows = [attn_mask[:, spans[name]] for name in queries]
        mask = attn_mask if len(rows) == len(hidden) else torch.cat(rows, dim=1)
        query = torch.cat(list(queries.values()), dim=1)
        if insulate and _INSULATED in queries:
            attended = attend_insulated(query, key, value, mask, readers=hidden[_INSULATED].shape[1])
        else:
            attended = attend(query, key, value, mask)
        return self._finish(hidden, attended, outputs, fused), (key, value)

    def _heads(self, attention: Any, kind: str, projected: Tensor) -> Tensor:
        """`(B, S, heads·d)` → `(B, S, H or G, d)`, with the per-head norm where there is one."""
        heads = projected.unflatten(-1, (-1, self.geometry.head_dim))
        norm = getattr(attention, f"{kind}_norm", None)
        return heads if norm is None else norm(heads)

    def _finish(
        self,
        hidden: Mapping[str, Tensor],
        attended: Tensor,
        outputs: Collection[str],
        fused: Mapping[str, FusedLayer],
    ) -> dict[str, Tensor]:
        """Output projection, residuals and MLP of each expert; `attended` is `(B, Q, H·d)`."""
        done = {}
        parts = attended.split([hidden[name].shape[1] for name in outputs], dim=1)
        for name, part in zip(outputs, parts, strict=True):
            layer: Any = self.experts[name]
            own = fused.get(name)
            output, mlp = (layer.self_attn.o_proj, layer.mlp) if own is None else (own.output, own.mlp)
            x = hidden[name] + output(part)
            done[name] = x + mlp(layer.post_attention_layernorm(x))
        return done


def _project(
    attention: Any, x: Tensor, with_query: bool, fused: FusedLayer | None
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Queries (where wanted), keys and values `(B, S, heads·d)` of `(B, S, D_e)`."""
    if fused is not None:
        return fused.project(x, with_query)
    return attention.q_proj(x) if with_query else None, attention.k_proj(x), attention.v_proj(x)


def _run_layer(layer: JointLayer, recompute: Recompute, *args: Any) -> Any:
    """What is compiled: recomputing inside, where a compiler sees it; the hooks of the layer outside."""
    return recomputed(recompute, layer.joint, *args)


def allow_programs(most: int) -> None:
    """Let `torch.compile` make so many programs of one function, where its own limit ends in running uncompiled."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, most)


class JointTransformer(nn.Module):
    """The stack of joint layers and each expert's final norm.

    layers: per expert, its layers in order. norms: per expert, its final norm. Both in block order.
    recompute: what training computes again in the backward pass (`vla_mot.nn.recompute`).
    insulate: the action expert reads the others' keys and values, but sends them no gradient.
    """

    recompute: Recompute = "none"
    insulate: bool = False

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

    def compile_layers(self, **options: Any) -> None:
        """Run every layer by `torch.compile` from now on, each as one graph; options are torch's.

        Weights keep their names. Hooks on a layer stay outside of what is compiled, as sharding needs it.
        """
        # All layers share one list of programs: training, validation, prefill, denoising; the last layer of each its
        # own; each for one batch size and for any. Where torch's own limit of 8 ends, so would the run.
        allow_programs(_MOST_PROGRAMS)
        program = torch.compile(_run_layer, fullgraph=True, **options)
        for layer in self.layers:
            cast(JointLayer, layer).program = program

    @property
    def dtype(self) -> torch.dtype:
        """Of the projections, and so of what runs through the stack; the heads' may be wider."""
        return next(p.dtype for name, p in self.named_parameters() if "norm" not in name)  # shards are flat

    def forward(
        self,
        hidden: Mapping[str, Tensor],
        turn: Rotation,
        attn_mask: Visible,
        *,
        outputs: Collection[str],
        kv_cache: Cache | None = None,
        injected: Mapping[str, Sequence[Tensor]] | None = None,
        keep_cache: bool = True,
        fused: Sequence[Mapping[str, FusedLayer]] | None = None,
    ) -> tuple[dict[str, Tensor], KVCache]:
        """Run all layers.

        hidden: expert → `(B, S, D_e)` embeddings, in block order; experts without tokens are left out.
        turn: rotation of these tokens. attn_mask: see `Visible`, with K = cached + these tokens.
        outputs: experts whose final (normed) states are wanted; the last layer of the others stops at its keys
        and values. injected: expert → tensors like its embeddings; the i-th is added after layer i (DeepStack).
        keep_cache: False lets every layer's keys and values go, which training needs no longer.
        fused: per layer, expert → its fused projections; an expert that is not there runs by its modules.
        Returns those states and the cache with these tokens appended, empty where it is not kept.
        """
        learns = torch.is_grad_enabled()
        insulate, recompute = self.insulate and learns, self.recompute if self.training and learns else "none"
        wanted = tuple(name for name in hidden if name in outputs)
        keys, values, last = [], [], len(self.layers) - 1
        hidden = {name: x.to(self.dtype) for name, x in hidden.items()}
        for i, layer in enumerate(self.layers):
            past = None if kv_cache is None else kv_cache.layer(i)
            needed = wanted if i == last else tuple(hidden)
            one = fused[i] if fused else None
            hidden, (key, value) = layer(hidden, turn, attn_mask, past, needed, insulate, recompute, one)
            for name, added in (injected or {}).items():
                if i < len(added) and name in hidden:
                    hidden = {**hidden, name: hidden[name] + added[i]}
            if keep_cache:
                keys.append(key)
                values.append(value)
        states = {name: self.norms[name](hidden[name]) for name in wanted}
        return states, KVCache(tuple(keys), tuple(values))

"""The projections of a layer, those of the same input as one: q, k and v; gate and up.

The fused weight *is* the layer's weights: their rows are laid side by side in one storage, of which the parameters
become views. Nothing is held twice, names and values stay, and what is loaded into the parameters is seen here.

Legend: `B` batch, `S` tokens, `D` width, `I` width of the MLP.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vla_mot.nn.projection import Projection, side_by_side


@dataclass(frozen=True)
class FusedLayer:
    """One layer of one expert.

    qkv: to `q + k + v` columns. sizes: columns of q, k and v. gate_up: to `2·I`. output, down: the projections back.
    activation: of the gate.
    """

    qkv: Projection
    sizes: tuple[int, int, int]
    gate_up: Projection
    output: Projection
    down: Projection
    activation: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, layer: Any) -> "FusedLayer":
        """Of a layer in the attribute names of `vla_mot.nn.expert`, whose parameters become views.

        Raises TypeError when a projection is no plain `nn.Linear`: an adapter is to be merged first.
        """
        attention, mlp = layer.self_attn, layer.mlp
        qkv = (attention.q_proj, attention.k_proj, attention.v_proj)

        def joined(*parts: nn.Module) -> Projection:
            weight, bias = fuse(parts)
            return Projection(weight, bias, side_by_side(weight))

        return cls(
            qkv=joined(*qkv),
            sizes=tuple(part.out_features for part in qkv),
            gate_up=joined(mlp.gate_proj, mlp.up_proj),
            output=joined(attention.o_proj),
            down=joined(mlp.down_proj),
            activation=getattr(mlp, "act_fn", F.silu),
        )

    def project(self, x: Tensor, with_query: bool) -> tuple[Tensor | None, Tensor, Tensor]:
        """`(B, S, D)` → queries (None where they are not wanted), keys and values `(B, S, columns)`."""
        if with_query:
            query, key, value = self.qkv(x).split(self.sizes, dim=-1)
            return query, key, value
        key, value = self.qkv.behind(self.sizes[0])(x).split(self.sizes[1:], dim=-1)
        return None, key, value

    def mlp(self, x: Tensor) -> Tensor:
        """`(B, S, D)` → `(B, S, D)`."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(self.activation(gate) * up)


@torch.no_grad()
def fuse(parts: Sequence[nn.Module]) -> tuple[Tensor, Tensor | None]:
    """The weight and bias of linear maps of one input as one; their parameters become views of it.

    Maps that were fused before are left as they lie. Raises TypeError for what is no plain `nn.Linear`.
    """
    for part in parts:
        if type(part) is not nn.Linear:
            raise TypeError(
                f"only plain nn.Linear can be fused, got {type(part).__name__}: merge adapters first."
            )
    linears = [cast(nn.Linear, part) for part in parts]
    biases = [part.bias for part in linears if part.bias is not None]
    assert len(biases) in (0, len(linears)), "some of the projections have a bias, some none"
    return _joined([part.weight for part in linears]), _joined(biases) if biases else None


def _joined(parts: Sequence[Tensor]) -> Tensor:
    first, rows = parts[0], sum(len(part) for part in parts)
    if not _adjacent(parts):
        whole = torch.cat([part.data for part in parts])
        for part, rows_of_it in zip(parts, whole.split([len(part) for part in parts]), strict=True):
            part.data = rows_of_it
    data = first.data
    return data.as_strided((rows, *data.shape[1:]), data.stride(), data.storage_offset())


def _adjacent(parts: Sequence[Tensor]) -> bool:
    """Whether the parts already lie one behind the other in one storage."""
    at, storage = parts[0].storage_offset(), parts[0].untyped_storage().data_ptr()
    for part in parts:
        if not (part.is_contiguous() and part.untyped_storage().data_ptr() == storage):
            return False
        if part.storage_offset() != at:
            return False
        at += part.numel()
    return True

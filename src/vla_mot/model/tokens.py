"""Embedded tokens on their way into the stack.

Legend: `B` batch, `S` tokens, `D_e` width of expert e, `X` position axes.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vla_mot.nn.masks import TokenLayout


@dataclass
class Tokens:
    """The blocks of one sequence so far, in block order.

    hidden: expert → `(B, S, D_e)`. layouts, positions `(X, B, S)`: one per block. injected: expert → tensors like its
    hidden states, the i-th to be added after layer i.
    """

    hidden: dict[str, Tensor]
    layouts: list[TokenLayout]
    positions: list[Tensor]
    injected: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

    def append(self, expert: str, hidden: Tensor, layout: TokenLayout, positions: Tensor) -> None:
        """Add a block behind the others."""
        before = self.hidden.get(expert)
        self.hidden[expert] = hidden if before is None else torch.cat((before, hidden), dim=1)
        self.layouts.append(layout)
        self.positions.append(positions)

    @property
    def layout(self) -> TokenLayout:
        """Of all blocks."""
        return TokenLayout.concat(self.layouts)

    @property
    def where(self) -> Tensor:
        """Positions `(X, B, S)` of all blocks."""
        return torch.cat(self.positions, dim=2)

    @property
    def last_position(self) -> Tensor:
        """`(B,)`: where the last token stands, on every axis."""
        return self.positions[-1][0, :, -1]

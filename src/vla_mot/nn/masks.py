"""Who may attend to whom: the one builder of every attention mask.

Blocks are ordered understanding 0, generation 1, state 2, action 3. Token i may attend to token j iff both are
real and block(j) <= block(i). For one token per block this is

              u  g  s  a   (keys)
    u         x  .  .  .
    g         x  x  .  .
    s         x  x  x  .
    a         x  x  x  x
    (queries)

Two refinements: tokens of two different non-zero *groups* never see each other (noise draws that share one
prefix), and within a block a *causal* token sees, and is seen by, only tokens in order (text).

Legend: `B` batch, `S` tokens, `Q` queries, `K` keys.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

UNDERSTANDING, GENERATION, STATE, ACTION = range(4)


@dataclass(frozen=True)
class TokenLayout:
    """Per token, what the mask depends on.

    block, group: `(S,)` int64. causal: `(S,)` bool. valid: `(B, S)` bool, False on padding and absent cameras.
    """

    block: Tensor
    group: Tensor
    causal: Tensor
    valid: Tensor

    @classmethod
    def of(cls, block: int, valid: Tensor, *, groups: int = 0, causal: bool = False) -> "TokenLayout":
        """One block of `valid.shape[1]` tokens; `groups` > 0 numbers that many equal runs of them 1, 2, …

        Raises AssertionError when the tokens do not divide into the groups.
        """
        count, device = valid.shape[1], valid.device
        assert groups == 0 or count % groups == 0, f"{count} tokens do not divide into {groups} groups"
        group = torch.zeros(count, dtype=torch.int64, device=device)
        if groups:
            group = torch.arange(count, device=device) // (count // groups) + 1
        return cls(
            block=torch.full((count,), block, dtype=torch.int64, device=device),
            group=group,
            causal=torch.full((count,), causal, device=device),
            valid=valid,
        )

    @staticmethod
    def concat(parts: "list[TokenLayout]") -> "TokenLayout":
        """Concatenate along the token axis."""
        return TokenLayout(
            block=torch.cat([part.block for part in parts]),
            group=torch.cat([part.group for part in parts]),
            causal=torch.cat([part.causal for part in parts]),
            valid=torch.cat([part.valid for part in parts], dim=1),
        )

    def __len__(self) -> int:
        return self.block.shape[0]


def build_attn_mask(keys: TokenLayout, num_queries: int | None = None) -> Tensor:
    """Return `(B, Q, K)` bool, True = may attend; the queries are the last `num_queries` keys (default: all).

    A padded query has an all-False row, and a padded key an all-False column.
    """
    total = len(keys)
    first = total - (total if num_queries is None else num_queries)
    order = torch.arange(total, device=keys.block.device)
    block_q, block_k = keys.block[first:, None], keys.block[None, :]
    group_q, group_k = keys.group[first:, None], keys.group[None, :]
    allowed = block_k <= block_q
    allowed &= (group_q == group_k) | (group_q == 0) | (group_k == 0)
    either_causal = keys.causal[first:, None] | keys.causal[None, :]
    allowed &= ~(either_causal & (block_q == block_k)) | (order[None, :] <= order[first:, None])
    return allowed & keys.valid[:, first:, None] & keys.valid[:, None, :]

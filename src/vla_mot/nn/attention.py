"""Attention over the tokens of all experts at once, and with a wall that gradients do not pass.

Legend: `B` batch, `Q`/`K` queries and keys over all experts, `H` heads, `G` KV heads, `d` head dim.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> Tensor:
    """Grouped-query attention: `(B, Q, H, d)`, `(B, K, G, d)` ×2 and `(B, Q, K)` bool → `(B, Q, H·d)`.

    attn_mask: None where every query sees every key, which the fastest kernels ask for.
    A query that may attend to nothing (padding) gets zeros, and no gradient.
    """
    repeats = query.shape[2] // key.shape[2]
    if attn_mask is None:
        seen = (key.transpose(1, 2), value.transpose(1, 2))
        out = F.scaled_dot_product_attention(query.transpose(1, 2), *seen, enable_gqa=repeats > 1)
        return out.transpose(1, 2).flatten(2)
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=2), value.repeat_interleave(repeats, dim=2)
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=attn_mask.unsqueeze(1)
    )
    return out.transpose(1, 2).flatten(2)


def attend_insulated(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, *, readers: int) -> Tensor:
    """`attend`, but what the last `readers` tokens read of earlier ones sends no gradient to these.

    The values are those of `attend` (knowledge insulation, arXiv 2505.23705). The queries before the readers see no
    key of theirs, by the mask of the joint stack, and train what they read as ever.
    """
    first, prefix = query.shape[1] - readers, key.shape[1] - readers
    walled_key, walled_value = (
        torch.cat((x[:, :prefix].detach(), x[:, prefix:]), dim=1) for x in (key, value)
    )
    read = attend(query[:, first:], walled_key, walled_value, attn_mask[:, first:])
    if first == 0:
        return read
    before = attend(query[:, :first], key[:, :prefix], value[:, :prefix], attn_mask[:, :first, :prefix])
    return torch.cat((before, read), dim=1)

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
        if query.device.type == "cpu" and query.dtype == torch.bfloat16 and not torch.is_grad_enabled():
            return _attend_by_products(query, key, value)
        seen = (key.transpose(1, 2), value.transpose(1, 2))
        out = F.scaled_dot_product_attention(query.transpose(1, 2), *seen, enable_gqa=repeats > 1)
        return out.transpose(1, 2).flatten(2)
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=2), value.repeat_interleave(repeats, dim=2)
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=attn_mask.unsqueeze(1)
    )
    return out.transpose(1, 2).flatten(2)


def _attend_by_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`attend` to everything, with the scores in memory: no gradient needs them kept.

    On a CPU in bfloat16 it is quicker than torch's flash kernel: queries that share keys are rows of one product.
    Scores are rounded to bfloat16, as in transformers' eager attention.
    """
    batch, _, heads, dim = query.shape
    shared = key.shape[2]
    query = (query * dim**-0.5).unflatten(2, (shared, heads // shared))  # (B, Q, G, H/G, d)
    rows = query.permute(0, 2, 3, 1, 4).reshape(batch * shared, -1, dim)
    keys = key.permute(0, 2, 3, 1).reshape(batch * shared, dim, -1)
    values = value.transpose(1, 2).reshape(batch * shared, -1, dim)
    out = torch.softmax(rows @ keys, dim=-1) @ values
    out = out.unflatten(0, (batch, shared)).unflatten(2, (heads // shared, -1))  # (B, G, H/G, Q, d)
    return out.permute(0, 3, 1, 2, 4).flatten(2)


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

"""Which weights stay float32 in a bfloat16 model, and casting to it.

As in the released checkpoints: every expert's two norms per layer and the understanding's final norm keep float32;
the q/k norms and the final norms of generation and action do not. A foresight tokenizer has a dtype of its own
(`foresight.dtype`), and computed tables (rotations, pixel means) stay as they are.
"""

import re

import torch
from torch import nn

_FLOAT32 = re.compile(
    r"stack\.layers\.\d+\.experts\.\w+\.(input|post_attention)_layernorm\.weight"
    r"|stack\.norms\.understanding\.weight"
)
_OWN_DTYPE = "tokenizer."


def keeps_float32(name: str) -> bool:
    """Whether the weight of this name in a `VlaMotModel` is float32 whatever dtype the others have."""
    return _FLOAT32.fullmatch(name) is not None


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Give every weight of a `VlaMotModel` its dtype in a model of `dtype`, in place."""
    for name, weight in model.named_parameters():
        if not name.startswith(_OWN_DTYPE):
            weight.data = weight.data.to(torch.float32 if keeps_float32(name) else dtype)

"""AdamW whose two averages hold 8 bits per number instead of 32 (bitsandbytes, Dettmers et al., arXiv 2110.02861).

Numbers are quantised in blocks of 256, each with its own scale. Weights of fewer than 4096 numbers keep a state of 32
bits. On a CPU it computes, slowly, what a GPU does.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from vla_mot.errors import ConfigError
from vla_mot.train.config import TrainConfig

_TABLES = {"qmap1": "dynamic", "qmap2": "udynamic"}
"""What the 256 codes mean: the same for every weight, and so never saved."""


def require_bitsandbytes() -> None:
    """Raise ConfigError when it is not installed."""
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "train.optimizer=adamw8bit needs bitsandbytes: pip install 'vla-mot[8bit]', or use adamw."
        )


def make(parameters: Sequence[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of parameter groups with a `weight_decay` each, of weights that are not sharded.

    Raises ConfigError when bitsandbytes is not installed.
    """
    require_bitsandbytes()
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(list(parameters), lr=config.lr, betas=config.betas, eps=config.eps)


def packed(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """What any optimizer of ours keeps of one weight, as tensors that can be written."""
    return {
        name: value if isinstance(value, Tensor) else torch.tensor(value)
        for name, value in state.items()
        if name not in _TABLES
    }


def unpacked(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse of `packed`, for one weight of `optimizer`, on the device of `tensors`."""
    tables: dict[str, Tensor] | None = getattr(optimizer, "name2qmap", None)
    if tables is None:
        return dict(tensors)
    state: dict[str, Any] = {**tensors, "step": int(tensors["step"])}
    if "absmax1" in state:
        for name, table in _TABLES.items():
            tables[table] = tables[table].to(state["absmax1"].device)
            state[name] = tables[table]
    return state

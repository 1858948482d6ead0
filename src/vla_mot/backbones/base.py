"""What a backbone family gives to the model, and how a family is found by its name.

Legend: `B` batch, `V` camera slots, `N` text tokens, `U` understanding tokens, `D` width, `X` position axes.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vla_mot.errors import ConfigError, unknown_name
from vla_mot.nn.expert import Geometry


@dataclass(frozen=True)
class Understood:
    """Embedded understanding tokens: `(B, U, D)`, whether each is real `(B, U)`, and positions `(X, B, U)`."""

    embeddings: Tensor
    valid: Tensor
    positions: Tensor


class UnderstandingExpert(nn.Module, ABC):
    """Vision tower, text embeddings and position ids of one family.

    Its transformer layers and final norm are handed to the joint stack (`make_layers`, `make_norm`), which owns
    them; this module keeps what turns pixels and words into embeddings.
    """

    geometry: Geometry
    hidden_size: int

    @abstractmethod
    def make_layers(self) -> list[nn.Module]:
        """Fresh text layers, one per layer of the stack, in the attribute names of `vla_mot.nn.expert`."""

    @abstractmethod
    def make_norm(self) -> nn.Module:
        """A fresh final norm."""

    @abstractmethod
    def forward(self, images: Tensor, view_mask: Tensor, token_ids: Tensor, token_mask: Tensor) -> Understood:
        """Embed the present frame and the instruction.

        images: `(B, V, 3, H, W)` float in [0, 1]. view_mask: `(B, V)` bool. token_ids, token_mask: `(B, N)`.
        """

    @abstractmethod
    def tokenize(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Instructions → token ids `(B, N)` int64 and mask `(B, N)` bool, cut or right-padded to N."""


def build_backbone(config: Mapping[str, Any]) -> UnderstandingExpert:
    """Build the family named by `config["type"]`. Raises ConfigError for an unknown one."""
    import vla_mot.backbones as package

    hidden = ("base", "tokenizers")
    known = [module.name for module in pkgutil.iter_modules(package.__path__) if module.name not in hidden]
    name = config.get("type", "")
    if name not in known:
        raise ConfigError(unknown_name("backbone type", name, known))
    module = importlib.import_module(f"{package.__name__}.{name}")
    options = {key: value for key, value in config.items() if key != "type"}
    return module.build(options)

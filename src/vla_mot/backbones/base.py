"""What a backbone family gives to the model, and how a family is found by its name.

Legend: `B` batch, `V` camera slots, `T` image tokens of a view, `N` text tokens,
`U` understanding tokens, `D` width, `X` position axes.
"""

import importlib
import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vla_mot.errors import ConfigError, unknown_name
from vla_mot.nn.expert import Geometry
from vla_mot.options import section


class Seen(NamedTuple):
    """Image tokens of every view, `(B, V, T, D)`; deepstack: as many of each further layer that is read."""

    tokens: Tensor
    deepstack: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Understood:
    """Embedded understanding tokens: `(B, U, D)`, whether each is real `(B, U)`, and positions `(X, B, U)`.

    deepstack: `(B, U, D)` each; the i-th is added to the understanding tokens after layer i.
    """

    embeddings: Tensor
    valid: Tensor
    positions: Tensor
    deepstack: tuple[Tensor, ...] = ()


class UnderstandingExpert(nn.Module, ABC):
    """Vision tower, text embeddings and position ids of one family.

    Its transformer layers and final norm are handed to the joint stack (`make_layers`, `make_norm`), which owns
    them; this module keeps what turns pixels and words into embeddings.
    """

    config: Any
    """The family's options, a frozen dataclass."""
    geometry: Geometry
    hidden_size: int
    tokenize: Callable[[Sequence[str]], tuple[Tensor, Tensor]]
    """Instructions → token ids `(B, N)` int64 and mask `(B, N)` bool; picklable (`tokenizers.TextEncoder`)."""
    causal: bool = False
    """Whether understanding tokens see only earlier ones, as language models are trained, or each other."""

    @property
    @abstractmethod
    def stock_names(self) -> tuple[tuple[str, str], ...]:
        """Patterns of names in the family's Hugging Face checkpoints, and the names in a `VlaMotModel`."""

    def stock_options(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What the family's Hugging Face `config.json` states of options that no shape shows: `group.name` → value.

        An option that it does not state is left out.
        """
        return {}

    def stock_key(self, name: str) -> str | None:
        """The name in a `VlaMotModel` of a weight in a Hugging Face checkpoint; None if it is of another family.

        Takes the spellings of files on the Hub and of every transformers version that wrote another one.
        """
        for pattern, ours in self.stock_names:
            if match := re.fullmatch(pattern, name):
                return match.expand(ours)
        return None

    def reset_buffers(self, device: torch.device | str) -> None:
        """Compute anew, on `device`, the buffers that no checkpoint stores (after construction on `meta`)."""

    @abstractmethod
    def make_layers(self) -> list[nn.Module]:
        """Fresh text layers, one per layer of the stack, in the attribute names of `vla_mot.nn.expert`."""

    @abstractmethod
    def make_norm(self) -> nn.Module:
        """A fresh final norm."""

    def forward(self, images: Tensor, view_mask: Tensor, token_ids: Tensor, token_mask: Tensor) -> Understood:
        """Embed the present frame and the instruction.

        images: `(B, V, 3, H, W)` float in [0, 1]. view_mask: `(B, V)` bool. token_ids, token_mask: `(B, N)`.
        """
        return self.arrange(self.see(images), view_mask, token_ids, token_mask)

    @abstractmethod
    def see(self, images: Tensor) -> Seen:
        """The vision tower: `(B, V, 3, H, W)` float in [0, 1] → image tokens."""

    @abstractmethod
    def arrange(self, seen: Seen, view_mask: Tensor, token_ids: Tensor, token_mask: Tensor) -> Understood:
        """Put image tokens and the embedded instruction in order; the arguments are those of `forward`."""


def stated(config: Mapping[str, Any], places: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Our options → the value at the first of the places (`group.key`) that a Hugging Face configuration has."""
    found: dict[str, Any] = {}
    for option, paths in places.items():
        values = [value for path in paths if (value := _at(config, path.split("."))) is not None]
        if values:
            found[option] = values[0]
    return found


def _at(tree: Any, path: Sequence[str]) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def build_backbone(config: Mapping[str, Any]) -> UnderstandingExpert:
    """Build the family named by `config["type"]`. Raises ConfigError for an unknown one."""
    options = {key: value for key, value in config.items() if key != "type"}
    return _family(config).build(options)


def read_options(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The options of a backbone, complete, and those of its family's published size, which are the defaults.

    Both are the family's dataclass. Raises ConfigError for an unknown family or option.
    """
    kind = _family(config).CONFIG
    return section(kind, "backbone", {key: value for key, value in config.items() if key != "type"}), kind()


def _family(config: Mapping[str, Any]) -> Any:
    import vla_mot.backbones as package

    hidden = ("base", "tokenizers", "qwen3_vl_vision")
    known = [module.name for module in pkgutil.iter_modules(package.__path__) if module.name not in hidden]
    name = config.get("type", "")
    if name not in known:
        raise ConfigError(unknown_name("backbone type", name, known))
    return importlib.import_module(f"{package.__name__}.{name}")

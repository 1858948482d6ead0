"""What a foresight tokenizer gives to the model, and how one is found by its name.

Legend: `N` pictures, `C` latent channels, `H`/`W` pixels, `h`/`w` latent rows and columns.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vla_mot.errors import ConfigError, unknown_name


class ForesightTokenizer(nn.Module, ABC):
    """A frozen picture autoencoder. Its parameters, if any, never get a gradient.

    latent_channels: C. compression: pixels per latent row or column.
    image_size: (height, width) that pictures are resized to (bilinear) before encoding.
    """

    latent_channels: int
    compression: int
    image_size: tuple[int, int]
    pretrained: bool = False
    """Whether it means nothing without weights from somewhere."""

    @property
    def latent_size(self) -> tuple[int, int]:
        """(h, w) of the latents."""
        return (self.image_size[0] // self.compression, self.image_size[1] // self.compression)

    @abstractmethod
    def encode(self, pictures: Tensor) -> Tensor:
        """`(N, 3, H, W)` float in [−1, 1] → `(N, C, h, w)` latents."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """`(N, C, h, w)` latents → `(N, 3, H, W)` float, about [−1, 1]; not clamped."""

    @property
    def fits(self) -> bool:
        """Whether `fit` does anything."""
        return type(self).fit is not ForesightTokenizer.fit

    def fit(self, pictures: Tensor) -> None:
        """Compute stored statistics from `(N, 3, H, W)` pictures in [−1, 1] of the training data."""

    def reset_buffers(self, device: torch.device | str) -> None:
        """Compute anew, on `device`, the buffers that no checkpoint stores (after construction on `meta`)."""


def build_tokenizer(config: Mapping[str, Any]) -> ForesightTokenizer:
    """Build the tokenizer named by `config["type"]`. Raises ConfigError for an unknown one."""
    import vla_mot.foresight as package

    hidden = ("base", "cosmos_autoencoder", "frozen")
    known = [module.name for module in pkgutil.iter_modules(package.__path__) if module.name not in hidden]
    name = config.get("type", "")
    if name not in known:
        raise ConfigError(unknown_name("foresight tokenizer", name, known))
    module = importlib.import_module(f"{package.__name__}.{name}")
    return module.build({key: value for key, value in config.items() if key != "type"})

"""A foresight tokenizer without weights: an orthonormal block DCT in YCbCr, whitened by stored statistics.

Each 8×8 block of a picture becomes its 8 lowest luma and 4 + 4 lowest chroma coefficients (in zigzag order), so
that latents have the shape of the Cosmos autoencoder's, 16 × H/8 × W/8, and decode to colour pictures. It needs
no download and costs one strided convolution.

Legend: `N` pictures, `C` latent channels, `H`/`W` pixels, `h`/`w` blocks, `b` block side.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vla_mot.errors import ConfigError
from vla_mot.foresight.base import ForesightTokenizer
from vla_mot.options import at_least, section, within

# ITU-R BT.601, full range: rows are Y, Cb, Cr as functions of R, G, B.
_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


@dataclass(frozen=True)
class DCTConfig:
    """image_size: (height, width) in pixels. block: b. coefficients: kept per plane (Y, Cb, Cr)."""

    image_size: tuple[int, int] = (64, 64)
    block: int = 8
    coefficients: tuple[int, int, int] = (8, 4, 4)

    def __post_init__(self) -> None:
        at_least(1, {"foresight.block": self.block})
        within(1, 8192, {f"foresight.image_size[{axis}]": side for axis, side in enumerate(self.image_size)})
        if any(side % self.block for side in self.image_size):
            raise ConfigError(
                f"DCT image_size {self.image_size} must be multiples of the block {self.block}."
            )
        if not all(0 < count <= self.block**2 for count in self.coefficients):
            raise ConfigError(f"DCT coefficients {self.coefficients} must lie in 1 … {self.block**2}.")


def build(options: Mapping[str, Any]) -> "DCTTokenizer":
    """Build from the options of `conf/foresight/dct.yaml`. Raises ConfigError for what does not fit."""
    return DCTTokenizer(section(DCTConfig, "foresight", options))


class DCTTokenizer(ForesightTokenizer):
    """See the module's docstring. `latent_mean` and `latent_std` `(C,)` are stored with the model."""

    analysis: Tensor
    synthesis: Tensor
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: DCTConfig) -> None:
        super().__init__()
        self.config = config
        self.image_size = (config.image_size[0], config.image_size[1])
        self.compression = config.block
        self.latent_channels = sum(config.coefficients)
        analysis, synthesis = _bases(config)
        self.register_buffer("analysis", analysis, persistent=False)
        self.register_buffer("synthesis", synthesis, persistent=False)
        self.register_buffer("latent_mean", torch.zeros(self.latent_channels))
        self.register_buffer("latent_std", torch.ones(self.latent_channels))

    def encode(self, pictures: Tensor) -> Tensor:
        raw = F.conv2d(pictures, self.analysis.to(pictures.dtype), stride=self.config.block)
        return (raw - self._column(self.latent_mean)) / self._column(self.latent_std)

    def decode(self, latents: Tensor) -> Tensor:
        raw = latents * self._column(self.latent_std) + self._column(self.latent_mean)
        return F.conv_transpose2d(raw, self.synthesis.to(raw.dtype), stride=self.config.block)

    def reset_buffers(self, device: torch.device | str) -> None:
        analysis, synthesis = _bases(self.config)
        self.analysis, self.synthesis = analysis.to(device), synthesis.to(device)

    @torch.no_grad()
    def fit(self, pictures: Tensor) -> None:
        """Whiten each channel to mean 0 and deviation 1 over the given pictures.

        Raises ConfigError when a channel is constant: it could not be whitened.
        """
        raw = F.conv2d(pictures.float(), self.analysis.float(), stride=self.config.block).double()
        std = raw.std(dim=(0, 2, 3))
        if not bool((std > 1e-6).all()):
            raise ConfigError(
                "the pictures are constant in some DCT channel; fit on frames that show the scene."
            )
        self.latent_mean.copy_(raw.mean(dim=(0, 2, 3)))
        self.latent_std.copy_(std)

    @staticmethod
    def _column(channels: Tensor) -> Tensor:
        return channels[None, :, None, None]


def _bases(config: DCTConfig) -> tuple[Tensor, Tensor]:
    """Kernels `(C, 3, b, b)`: RGB blocks → coefficients, and coefficients → RGB blocks."""
    size = config.block
    k, x = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)[None, :]
    dct = torch.cos(math.pi * (2 * x + 1) * k / (2 * size)) * math.sqrt(2 / size)
    dct[0] /= math.sqrt(2)
    order = sorted(((i, j) for i in range(size) for j in range(size)), key=lambda ij: (sum(ij), ij))
    forward = torch.tensor(_YCBCR, dtype=torch.float64)
    backward = torch.linalg.inv(forward)
    analysis, synthesis = [], []
    for plane, count in enumerate(config.coefficients):
        for i, j in order[:count]:
            basis = torch.outer(dct[i], dct[j])
            analysis.append(forward[plane, :, None, None] * basis)
            synthesis.append(backward[:, plane, None, None] * basis)
    return torch.stack(analysis).float(), torch.stack(synthesis).float()

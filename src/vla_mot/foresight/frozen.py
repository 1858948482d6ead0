"""What tokenizers around a trained autoencoder share: no gradient, one dtype whatever surrounds them, scaled latents.

Legend: `N` pictures, `C` latent channels, `H`/`W` pixels, `h`/`w` latent rows and columns.
"""

from abc import abstractmethod
from typing import Literal, Self

import torch
from torch import Tensor, nn

from vla_mot.foresight.base import ForesightTokenizer
from vla_mot.nn.autocast import without_autocast

Dtype = Literal["float32", "bfloat16"]


class FrozenAutoencoder(ForesightTokenizer):
    """A tokenizer whose `autoencoder` holds all of its weights.

    latents = (encoded − latent_shift) · latent_scale. The autoencoder computes in the dtype of its weights, also
    under autocast, and always in evaluation mode; what comes out has the dtype of what went in.
    """

    pretrained = True
    latent_scale: float
    latent_shift: float

    def __init__(self, autoencoder: nn.Module, dtype: Dtype, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        # diffusers' own `to` warns about float32 modules even where a class names none.
        nn.Module.to(autoencoder, getattr(torch, dtype))
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.latent_scale, self.latent_shift = scale, shift

    @abstractmethod
    def raw_encode(self, pictures: Tensor) -> Tensor:
        """`(N, 3, H, W)` in the weights' dtype → `(N, C, h, w)`, neither shifted nor scaled."""

    @abstractmethod
    def raw_decode(self, latents: Tensor) -> Tensor:
        """The inverse of `raw_encode`, as far as the autoencoder is one."""

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        with without_autocast(pictures.device):
            raw = self.raw_encode(pictures.to(self._dtype)).to(pictures.dtype)
            return (raw - self.latent_shift) * self.latent_scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        with without_autocast(latents.device):
            raw = latents / self.latent_scale + self.latent_shift
            return self.raw_decode(raw.to(self._dtype)).to(latents.dtype)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.autoencoder.eval()  # dropout or batch statistics would make latents depend on the batch
        return self

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.autoencoder.parameters()).dtype

"""The Cosmos continuous image autoencoder (CI8x8) as a diffusers model.

    pictures ── Haar, patch 4 ── conv_in ── down.0 … down.n ── mid ── norm_out, conv_out ── quant_conv ── latents
    latents ── post_quant_conv ── conv_in ── mid ── up.n … up.0 ── norm_out, conv_out ── Haar⁻¹ ── pictures

Parameters carry the names of the archives that NVIDIA publishes (`nvidia/Cosmos-Tokenizer-CI8x8`), whose encoding is
the mean itself: there is no latent distribution. The wavelet is a constant of the code, not a tensor of the module,
so a model that was built on the meta device needs nothing but its parameters.

Legend: `N` pictures, `C` channels, `H`/`W` rows and columns.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, EncoderOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

HAAR_LEVELS = 2
PATCH = 2**HAAR_LEVELS  # pixels per side that become channels
NORM_GROUPS = 32
COLORS = 3


def haar_patch(x: Tensor) -> Tensor:
    """`(N, C, H, W)` → `(N, 16·C, H/4, W/4)`: two levels of bands [LL, LH, HL, HH], each divided by 2.

    Every band holds all channels that came in; of a 2×2 block `[a b; c d]`, LH is (a+b−c−d)/4.
    """
    for _ in range(HAAR_LEVELS):
        low, high = _split(x, -1)
        x = torch.cat((*_split(low, -2), *_split(high, -2)), dim=1) / 2
    return x


def haar_unpatch(x: Tensor) -> Tensor:
    """The inverse of `haar_patch`: `(N, 16·C, H/4, W/4)` → `(N, C, H, W)`."""
    for _ in range(HAAR_LEVELS):
        low_low, low_high, high_low, high_high = x.chunk(4, dim=1)
        x = _join(_join(low_low, low_high, -2), _join(high_low, high_high, -2), -1) * 2
    return x


def _split(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Half-length sums and differences of neighbours along `dim`."""
    even, odd = _wide(x).unflatten(dim, (-1, 2)).unbind(dim)
    return ((even + odd) * _wavelet(x)).to(x.dtype), ((even - odd) * _wavelet(x)).to(x.dtype)


def _join(low: Tensor, high: Tensor, dim: int) -> Tensor:
    even, odd = _wide(low) + _wide(high), _wide(low) - _wide(high)
    return (torch.stack((even, odd), dim=dim).flatten(dim - 1, dim) * _wavelet(low)).to(low.dtype)


def _wide(x: Tensor) -> Tensor:
    # A convolution with the wavelet adds in float32 and rounds once, in any dtype; so do we.
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _wavelet(x: Tensor) -> float:
    """√½ as the dtype of `x` holds it, since that is what the published models multiply with."""
    return 0.70703125 if x.dtype in (torch.bfloat16, torch.float16) else 0.5**0.5


class ResBlock(nn.Module):
    """Two normalized 3×3 convolutions beside a shortcut, which is 1×1 where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = _norm(inputs)
        self.conv1 = _conv(inputs, outputs)
        self.norm2 = _norm(outputs)
        self.conv2 = _conv(outputs, outputs)
        self.nin_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """One head of attention over all places, scaled by C^−½, with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        # (N, 1, H·W, C): heads, places, channels
        q, k, v = (_places(project(y)) for project in (self.q, self.k, self.v))
        seen = F.scaled_dot_product_attention(q, k, v).squeeze(1).mT.unflatten(2, x.shape[2:])
        return x + self.proj_out(seen)


class Downsample(nn.Module):
    """Half the rows and columns; zeros are padded at the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the rows and columns: nearest neighbours, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one width; the first one changes to it."""

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.block = nn.ModuleList(ResBlock(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x


class DownLevel(Level):
    """A level of the encoder."""

    def __init__(self, inputs: int, outputs: int, blocks: int, halves: bool) -> None:
        super().__init__(inputs, outputs, blocks)
        self.downsample = Downsample(outputs) if halves else None

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if self.downsample is None else self.downsample(x)


class UpLevel(Level):
    """A level of the decoder."""

    def __init__(self, inputs: int, outputs: int, blocks: int, doubles: bool) -> None:
        super().__init__(inputs, outputs, blocks)
        self.upsample = Upsample(outputs) if doubles else None

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if self.upsample is None else self.upsample(x)


class Middle(nn.Module):
    """Residual, attention, residual: the only place where far pixels meet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Pictures `(N, 3, H, W)` → `(N, latent channels, h, w)`, before `quant_conv`. The first levels halve."""

    def __init__(
        self, channels: int, widths: Sequence[int], blocks: int, latents: int, halvings: int
    ) -> None:
        super().__init__()
        self.conv_in = _conv(COLORS * PATCH**2, channels)
        self.down = nn.ModuleList(
            DownLevel(a, b, blocks, halves=level < halvings)
            for level, (a, b) in enumerate(pairwise((channels, *widths)))
        )
        self.mid = Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = _conv(widths[-1], latents)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.conv_in(haar_patch(pictures))
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """`(N, latent channels, h, w)` after `post_quant_conv` → pictures `(N, 3, H, W)`. `up` is run last to first."""

    def __init__(self, widths: Sequence[int], blocks: int, latents: int, doublings: int) -> None:
        super().__init__()
        self.conv_in = _conv(latents, widths[-1])
        self.mid = Middle(widths[-1])
        last = len(widths) - 1
        self.up = nn.ModuleList(
            UpLevel(widths[min(level + 1, last)], width, blocks + 1, doubles=last - level < doublings)
            for level, width in enumerate(widths)
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = _conv(widths[0], COLORS * PATCH**2)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        return haar_unpatch(self.conv_out(F.silu(self.norm_out(x))))


class CosmosAutoencoder(ModelMixin, ConfigMixin):
    """A diffusers model with `encode(x).latent` and `decode(z).sample`; its defaults are those of CI8x8.

    channels: width after the first convolution. channel_multipliers: widths of the levels over it, each a multiple
    of 32. blocks_per_level: residual blocks of an encoder level; a decoder level has one more. spatial_compression:
    pixels per latent row or column, 4·2ᵏ with k at most the number of levels.
    """

    @register_to_config
    def __init__(
        self,
        channels: int = 128,
        channel_multipliers: Sequence[int] = (2, 4, 4),
        blocks_per_level: int = 2,
        latent_channels: int = 16,
        spatial_compression: int = 8,
    ) -> None:
        super().__init__()
        widths = [channels * factor for factor in channel_multipliers]
        halvings = (spatial_compression // PATCH).bit_length() - 1
        self.encoder = Encoder(channels, widths, blocks_per_level, latent_channels, halvings)
        self.decoder = Decoder(widths, blocks_per_level, latent_channels, halvings)
        self.quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)

    def encode(self, x: Tensor) -> EncoderOutput:
        """Pictures `(N, 3, H, W)` in [−1, 1] → `.latent` `(N, C, H/8, W/8)`.

        Raises ValueError for sides that are no multiples of `spatial_compression`.
        """
        step = self.config.spatial_compression
        if x.ndim != 4 or x.shape[1] != COLORS or x.shape[2] % step or x.shape[3] % step:
            raise ValueError(
                f"expected pictures (N, {COLORS}, H, W) with H and W multiples of {step}, got {tuple(x.shape)}; "
                "resize them, see image_size in conf/foresight/cosmos.yaml."
            )
        return EncoderOutput(latent=self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> DecoderOutput:
        """Latents `(N, C, h, w)` → `.sample`, pictures `(N, 3, 8·h, 8·w)`, about [−1, 1] and not clamped."""
        return DecoderOutput(sample=self.decoder(self.post_quant_conv(z)))

    def forward(self, sample: Tensor) -> DecoderOutput:
        """Encode and decode again."""
        return self.decode(self.encode(sample).latent)


def _places(x: Tensor) -> Tensor:
    return x.flatten(2).mT.unsqueeze(1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels, eps=1e-6)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)

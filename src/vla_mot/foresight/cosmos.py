"""The Cosmos CI8x8 image autoencoder as a foresight tokenizer: what the released checkpoints foresee in.

Source: `nvidia/Cosmos-Tokenizer-CI8x8` (continuous image tokenizer, 8× smaller, 16 channels). Its weights come from
`vla_mot.hub.foresight_weights` or with a policy's checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vla_mot.errors import ConfigError
from vla_mot.foresight.cosmos_autoencoder import NORM_GROUPS, PATCH, CosmosAutoencoder
from vla_mot.foresight.frozen import Dtype, FrozenAutoencoder
from vla_mot.options import section


@dataclass(frozen=True)
class CosmosConfig:
    """image_size: (height, width) in pixels. spatial_compression: pixels per latent row or column.
    channels, channel_multipliers, blocks_per_level, latent_channels: see `CosmosAutoencoder`.

    dtype: float32 computes what the architecture says (a GPU rounds convolutions to TensorFloat-32 where cuDNN may,
    torch's default). The released policies ran it in bfloat16, weights and Haar wavelets rounded (√½ = 0.70703125):
    that moves latents by about a hundredth and the foresight loss in
    the fourth decimal (1.42107 instead of 1.42125 on the golden `a1_3b_tiny`), for about half the time.
    """

    image_size: tuple[int, int] = (256, 256)
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (2, 4, 4)
    blocks_per_level: int = 2
    latent_channels: int = 16
    spatial_compression: int = 8
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        known = [PATCH * 2**k for k in range(len(self.channel_multipliers) + 1)]
        if self.spatial_compression not in known:
            raise ConfigError(
                f"foresight.spatial_compression must be one of {known} with {len(self.channel_multipliers)} "
                f"channel_multipliers, got {self.spatial_compression}; see conf/foresight/cosmos.yaml."
            )
        if min(self.image_size) < 1 or any(side % self.spatial_compression for side in self.image_size):
            raise ConfigError(
                f"foresight.image_size must be positive multiples of {self.spatial_compression}, "
                f"got {list(self.image_size)}."
            )
        widths = (self.channels, *(self.channels * factor for factor in self.channel_multipliers))
        if len(widths) == 1 or any(width < 1 or width % NORM_GROUPS for width in widths):
            raise ConfigError(
                f"foresight.channels × channel_multipliers must be positive multiples of {NORM_GROUPS}, "
                f"got {self.channels} × {list(self.channel_multipliers)}."
            )
        if min(self.blocks_per_level, self.latent_channels) < 1:
            raise ConfigError("foresight.blocks_per_level and foresight.latent_channels must be at least 1.")


def build(options: Mapping[str, Any]) -> "CosmosTokenizer":
    """Build from the options of `conf/foresight/cosmos.yaml`. Raises ConfigError for one that does not fit."""
    return CosmosTokenizer(section(CosmosConfig, "foresight", options))


class CosmosTokenizer(FrozenAutoencoder):
    """See the module's docstring. `encode` takes any number of pictures at once."""

    autoencoder: CosmosAutoencoder

    def __init__(self, config: CosmosConfig) -> None:
        autoencoder = CosmosAutoencoder(
            channels=config.channels,
            channel_multipliers=list(config.channel_multipliers),
            blocks_per_level=config.blocks_per_level,
            latent_channels=config.latent_channels,
            spatial_compression=config.spatial_compression,
        )
        super().__init__(autoencoder, config.dtype)
        self.config = config
        self.image_size = config.image_size
        self.compression = config.spatial_compression
        self.latent_channels = config.latent_channels

    def raw_encode(self, pictures: Tensor) -> Tensor:
        return self.autoencoder.encode(pictures).latent

    def raw_decode(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents).sample

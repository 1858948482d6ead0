"""Colour and crop augmentation of training pictures, keyed by sample.

Every (sample, camera) draws once, and what it draws holds for the frames t − m, t and t + m alike: motion stays motion,
and the understanding and generation experts see the same world. Cameras differ in colour as real ones do. The draw is
a function of (seed, global sample index, camera), so it depends neither on who else is in the batch nor on the process.

Colour is one affine map of RGB, the same for all pixels and frames: hue turns and saturation scales the chroma plane of
YIQ, brightness scales, contrast spreads around mid-grey (not around a picture's mean, which would flicker).

Legend: `B` samples, `F` frames, `V` cameras, `N` (sample, camera) pairs, `H`/`W` pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vla_mot.errors import ConfigError
from vla_mot.keyed import keyed_uniform
from vla_mot.robots.images import to_bytes, to_unit

_STREAM = 3  # of the keyed numbers; noise and noise levels have 1 and 2
_DRAWS = 7  # numbers per (sample, camera)
_AT_ONCE = 2  # pairs whose floats are in memory together; on a CPU, more are slower
_YIQ = ((0.299, 0.587, 0.114), (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))


@dataclass(frozen=True)
class AugmentationConfig:
    """How far pictures are changed; as it stands, not at all.

    brightness, contrast, saturation: b, factors are uniform in [1 − b, 1 + b], with b in [0, 1].
    hue: h, the hue turns by a part of the colour circle, uniform in [−h, h], with h in [0, 0.5].
    crop: side of the window relative to the picture's, in (0, 1]; it lies anywhere inside and is scaled back. 1 is off.
    probability: of a (sample, camera) to be changed at all, in [0, 1].
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    crop: float = 1.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        limits = {"hue": 0.5}
        for name in ("brightness", "contrast", "saturation", "hue", "probability"):
            value, most = getattr(self, name), limits.get(name, 1)
            if not 0 <= value <= most:
                raise ConfigError(f"augmentation.{name} must lie in [0, {most}], got {value}.")
        if not 0 < self.crop <= 1:
            raise ConfigError(
                f"augmentation.crop must lie in (0, 1], got {self.crop}; it is a window's side relative to the whole."
            )

    @property
    def changes_colour(self) -> bool:
        """Whether any colour range is open."""
        return max(self.brightness, self.contrast, self.saturation, self.hue) > 0

    @property
    def is_off(self) -> bool:
        """Whether pictures stay as they are."""
        return self.probability == 0 or not (self.changes_colour or self.crop < 1)


def augment(images: Tensor, config: AugmentationConfig, seed: int, index: Tensor) -> Tensor:
    """Return the pictures with their colours changed and a window of each scaled to its size (bilinear).

    images: `(B, F, V, 3, H, W)` uint8, on any device; frames share what their (sample, camera) drew. index: `(B,)`
    int64, global sample indices. The result is uint8 too, and `images` itself where nothing is to be done.
    """
    if config.is_off:
        return images
    views = images.shape[2]
    drawn = keyed_uniform(seed, 0, _STREAM, index.cpu(), views * _DRAWS).reshape(-1, _DRAWS)
    chosen = (drawn[:, 0] <= config.probability).nonzero()[:, 0]
    if not len(chosen):
        return images
    result = images.clone()
    for pairs in chosen.split(_AT_ONCE):
        sample, view = pairs // views, pairs % views
        pictures = to_unit(images[sample, :, view])
        if config.crop < 1:
            pictures = _crop(pictures, config.crop, drawn[pairs, 1:3])
        if config.changes_colour:
            pictures = _recolour(pictures, *_colour_maps(config, drawn[pairs, 3:]))
        result[sample, :, view] = to_bytes(pictures)
    return result


def _crop(pictures: Tensor, side: float, corner: Tensor) -> Tensor:
    """`(N, F, 3, H, W)` → windows of it, scaled back. corner: `(N, 2)`, how far down and right each lies, in [0, 1]."""
    windows = torch.zeros(len(corner), 2, 3)  # rows x, y; in grid_sample's coordinates the picture is [-1, 1]
    windows[:, 0, 0] = windows[:, 1, 1] = side
    windows[:, :, 2] = (2 * corner.flip(1) - 1) * (1 - side)
    flat = pictures.flatten(1, 2)
    grid = F.affine_grid(windows.to(flat.device), list(flat.shape), align_corners=False)
    return F.grid_sample(flat, grid, padding_mode="border", align_corners=False).reshape(pictures.shape)


def _colour_maps(config: AugmentationConfig, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """`(N, 4)` numbers in (0, 1] → the maps rgb ↦ A·rgb + b: `(N, 3, 3)` and `(N,)`, float32."""
    ranges = (config.brightness, config.contrast, config.saturation, config.hue)
    swing = (2 * drawn - 1) * torch.tensor(ranges)
    brightness, contrast, saturation = (1 + swing[:, :3]).unbind(1)
    turn = 2 * torch.pi * swing[:, 3]
    yiq = torch.tensor(_YIQ, dtype=drawn.dtype)
    chroma = torch.zeros(len(drawn), 3, 3, dtype=drawn.dtype)
    chroma[:, 0, 0] = 1
    chroma[:, 1, 1] = chroma[:, 2, 2] = saturation * turn.cos()
    chroma[:, 2, 1] = saturation * turn.sin()
    chroma[:, 1, 2] = -chroma[:, 2, 1]
    matrices = (brightness * contrast)[:, None, None] * (yiq.inverse() @ chroma @ yiq)
    return matrices.float(), (0.5 * (1 - contrast)).float()


def _recolour(pictures: Tensor, matrices: Tensor, offsets: Tensor) -> Tensor:
    """Apply one map per (sample, camera) to `(N, F, 3, H, W)`."""
    matrices, offsets = matrices.to(pictures.device), offsets.to(pictures.device)
    recoloured = matrices[:, None] @ pictures.flatten(3) + offsets[:, None, None, None]
    return recoloured.reshape(pictures.shape)

"""Image resizing as the released checkpoints expect it.

Legend: `...` any leading axes, `C` channels, `H`/`W` pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_with_pad(images: Tensor, height: int, width: int) -> Tensor:
    """Scale by the smaller ratio (bilinear, no antialias), then centre on zeros.

    images: `(..., C, H, W)` uint8, or float in [0, 1]. Returns the same dtype, `(..., C, height, width)`, bytes
    rounded (as caches of training frames keep them); an image that already has the size is returned as it is.
    """
    if images.shape[-2:] == (height, width):
        return images
    *lead, channels, old_height, old_width = images.shape
    new_height, new_width = fitted_size(old_height, old_width, height, width)
    flat = images.reshape(-1, channels, old_height, old_width)
    is_uint8 = flat.dtype == torch.uint8
    resized = F.interpolate(
        flat.float() if is_uint8 else flat, size=(new_height, new_width), mode="bilinear", align_corners=False
    )
    resized = resized.round().clamp(0, 255).to(torch.uint8) if is_uint8 else resized.clamp(0, 1)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    padded = F.pad(resized, (left, width - new_width - left, top, height - new_height - top))
    return padded.reshape(*lead, channels, height, width)


def fitted_size(old_height: int, old_width: int, height: int, width: int) -> tuple[int, int]:
    """(height, width) that a picture has inside a view of `height` × `width`, before it is padded."""
    ratio = max(old_width / width, old_height / height)
    return int(old_height / ratio), int(old_width / ratio)


def to_unit(images: Tensor) -> Tensor:
    """uint8 [0, 255] → float32 [0, 1]; floats in [0, 1] stay as they are, in float32."""
    # In place, since floats of bytes are a copy already: a second one takes longer than the division.
    return images.float().div_(255.0) if images.dtype == torch.uint8 else images.float()


def to_bytes(images: Tensor) -> Tensor:
    """Floats in [0, 1] → uint8 [0, 255], rounded; the inverse of `to_unit`."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)

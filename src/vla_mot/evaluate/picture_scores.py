"""How alike two pictures are, without a network's opinion: squared error, peak signal-to-noise ratio, and SSIM.

Structural similarity after Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to
structural similarity" (2004): with means, variances and the covariance under a Gaussian window,

    SSIM = (2 μ_a μ_b + C1) (2 σ_ab + C2) / ((μ_a² + μ_b² + C1) (σ_a² + σ_b² + C2))

averaged over all places where the whole window lies inside the picture, and over colours.

Legend: `...` any leading axes, `C` colours, `H`/`W` pixels.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW, SIGMA = 11, 1.5
"""Pixels along a side of the Gaussian window, and its deviation."""
_C1, _C2 = 0.01**2, 0.03**2
"""(K1 · range)², (K2 · range)² of pictures in [0, 1]."""


def mean_squared_error(a: Tensor, b: Tensor) -> Tensor:
    """`(..., C, H, W)` pictures in [0, 1], of one shape → `(...)` float64."""
    return (a.double() - b.double()).square().mean((-3, -2, -1))


def peak_ratio(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of pictures in [0, 1]; infinite without an error."""
    return math.inf if mse == 0 else -10 * math.log10(mse)


def structural_similarity(a: Tensor, b: Tensor) -> Tensor:
    """`(..., C, H, W)` pictures in [0, 1], of one shape → `(...)` float64, 1 where they are the same.

    Raises ValueError for pictures smaller than the window.
    """
    if a.shape != b.shape or min(a.shape[-2:]) < WINDOW:
        raise ValueError(
            f"SSIM compares pictures of one size of at least {WINDOW}×{WINDOW} pixels, got {tuple(a.shape)} and "
            f"{tuple(b.shape)}."
        )
    a, b = a.double(), b.double()
    mean_a, mean_b = _blurred(a), _blurred(b)
    variance_a = _blurred(a * a) - mean_a.square()
    variance_b = _blurred(b * b) - mean_b.square()
    covariance = _blurred(a * b) - mean_a * mean_b
    brightness = (2 * mean_a * mean_b + _C1) / (mean_a.square() + mean_b.square() + _C1)
    structure = (2 * covariance + _C2) / (variance_a + variance_b + _C2)
    return (brightness * structure).mean((-3, -2, -1))


def gaussian_window() -> Tensor:
    """`(11,)` float64 weights that sum to 1; the window is their outer product."""
    places = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = (-places.square() / (2 * SIGMA**2)).exp()
    return weights / weights.sum()


def _blurred(x: Tensor) -> Tensor:
    """Weighted means under the window, `(..., C, H − 10, W − 10)`."""
    weights = gaussian_window().to(x.device)
    flat = x.reshape(-1, 1, *x.shape[-2:])
    flat = F.conv2d(F.conv2d(flat, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return flat.view(*x.shape[:-2], *flat.shape[-2:])

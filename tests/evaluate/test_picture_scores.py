import math

import pytest
import torch

from vla_mot.evaluate.picture_scores import (
    WINDOW,
    gaussian_window,
    mean_squared_error,
    peak_ratio,
    structural_similarity,
)


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, 3, 16, 14, generator=torch.Generator().manual_seed(seed))


def naive_ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of two `(3, H, W)` pictures, window by window, from the definitions of mean, variance and covariance."""
    line = torch.tensor([math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)], dtype=torch.float64)
    weights = torch.outer(line, line)
    weights = weights / weights.sum()
    found = []
    for colour in range(3):
        for top in range(a.shape[1] - 10):
            for left in range(a.shape[2] - 10):
                x, y = (p[colour, top : top + 11, left : left + 11].double() for p in (a, b))
                mx, my = (weights * x).sum(), (weights * y).sum()
                vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
                cov = (weights * (x - mx) * (y - my)).sum()
                c1, c2 = 0.01**2, 0.03**2
                found.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(torch.stack(found).mean())


def test_ssim_is_what_its_definition_says():
    a = pictures(2)
    b = (a + 0.2 * pictures(2, seed=1)).clamp(0, 1)
    expected = [naive_ssim(x, y) for x, y in zip(a, b, strict=True)]
    assert structural_similarity(a, b).tolist() == pytest.approx(expected, abs=1e-12)


def test_what_ssim_must_be():
    a, b = pictures(), pictures(seed=1)
    assert float(structural_similarity(a, a)) == pytest.approx(1.0, abs=1e-12)
    assert torch.equal(structural_similarity(a, b), structural_similarity(b, a))
    assert -0.2 < float(structural_similarity(a, b)) < 0.2, "noise resembles no other noise"
    assert float(structural_similarity(a, 1 - a)) < -0.5, "a negative is the opposite in structure"
    noisy = [structural_similarity(a, (a + level * (b - 0.5)).clamp(0, 1)) for level in (0.05, 0.2, 0.8)]
    assert noisy == sorted(noisy, reverse=True)


def test_ssim_of_plain_pictures_is_that_of_their_brightness():
    """Without structure σ = 0 and only the first factor is left."""
    dark, bright = torch.full((3, 12, 12), 0.25), torch.full((3, 12, 12), 0.75)
    expected = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    assert float(structural_similarity(dark, bright)) == pytest.approx(expected, abs=1e-9)


def test_the_window_is_eleven_wide():
    weights = gaussian_window()
    assert len(weights) == WINDOW == 11
    assert float(weights.sum()) == pytest.approx(1)
    assert float(weights[5] / weights[4]) == pytest.approx(math.exp(1 / (2 * 1.5**2)))
    structural_similarity(torch.rand(3, 11, 11), torch.rand(3, 11, 11))
    with pytest.raises(ValueError, match="at least 11×11 pixels"):
        structural_similarity(torch.rand(3, 10, 20), torch.rand(3, 10, 20))
    with pytest.raises(ValueError, match="of one size"):
        structural_similarity(torch.rand(3, 11, 11), torch.rand(3, 11, 12))


def test_squared_error_and_peak_ratio():
    a = torch.zeros(2, 3, 4, 4)
    b = a.clone()
    b[1, 0] = 0.3  # one colour of three
    assert mean_squared_error(a, b).tolist() == pytest.approx([0, 0.03])
    assert peak_ratio(0.01) == pytest.approx(20)
    assert peak_ratio(0) == math.inf

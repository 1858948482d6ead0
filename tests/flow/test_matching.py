import math

import pytest
import torch

from vla_mot.errors import ConfigError
from vla_mot.flow.matching import (
    NoiseLevelConfig,
    interpolate,
    noise_level_embedding,
    velocity,
)
from vla_mot.keyed import keyed_uniform


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_level_one_is_noise_and_level_zero_is_data() -> None:
    noise, actions = draw(2, 3, 4), draw(2, 3, 4, seed=1)
    assert torch.equal(interpolate(noise, actions, torch.ones(2)), noise)
    assert torch.equal(interpolate(noise, actions, torch.zeros(2)), actions)
    mixed = interpolate(noise, actions, torch.tensor([0.25, 0.75]))
    assert torch.allclose(mixed[0], 0.25 * noise[0] + 0.75 * actions[0])
    assert torch.allclose(mixed[1], 0.75 * noise[1] + 0.25 * actions[1])


def test_the_velocity_is_the_derivative_of_the_interpolation() -> None:
    noise, actions = draw(2, 3, 4).double(), draw(2, 3, 4, seed=1).double()
    low, high = torch.tensor([0.3, 0.6]).double(), torch.tensor([0.4, 0.7]).double()
    slope = (interpolate(noise, actions, high) - interpolate(noise, actions, low)) / (high - low)[
        :, None, None
    ]
    assert torch.allclose(velocity(noise, actions), slope)


def test_noise_levels_lie_in_their_range_with_the_moments_of_beta() -> None:
    uniform = keyed_uniform(0, 0, 0, torch.arange(1000), 200).flatten()
    levels = NoiseLevelConfig().from_uniform(uniform)
    assert levels.min() > 0.001 and levels.max() <= 1
    beta = (levels - 0.001) / 0.999  # Beta(1.5, 1): mean a/(a+1), variance a/((a+1)²(a+2))
    assert abs(float(beta.mean()) - 0.6) < 2e-3
    assert abs(float(beta.var()) - 1.5 / (2.5**2 * 3.5)) < 1e-3
    assert abs(float((beta < 0.5).double().mean()) - 0.5**1.5) < 5e-3  # the distribution is x^1.5


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.0},
        {"alpha": -1.0},
        {"offset": 0.0},
        {"offset": 0.1, "scale": 1.0},
        {"scale": -1.0},
        {"scale": float("nan")},
    ],
)
def test_noise_levels_outside_their_range_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match="noise levels must lie in"):
        NoiseLevelConfig(**options)


def test_the_level_embedding_equals_a_naive_float64_version() -> None:
    levels, width = torch.tensor([0.001, 0.123, 0.5, 1.0]), 16
    embedded = noise_level_embedding(levels, width, 4e-3, 4.0)
    assert embedded.dtype == torch.float32 and embedded.shape == (4, width)
    for row, level in enumerate(levels.tolist()):
        for i in range(width // 2):
            angle = 2 * math.pi * level / (4e-3 * (4.0 / 4e-3) ** (i / (width // 2 - 1)))
            assert abs(float(embedded[row, i]) - math.sin(angle)) < 1e-6
            assert abs(float(embedded[row, width // 2 + i]) - math.cos(angle)) < 1e-6

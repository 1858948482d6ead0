"""What carries noise to actions: exact cases, order, and where velocities are asked for."""

import math

import pytest
import torch

from vla_mot.errors import ConfigError
from vla_mot.flow.matching import velocity
from vla_mot.flow.solvers import evaluated_levels, integrate

SOLVERS = ["euler", "midpoint", "heun"]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_the_true_velocity_leads_to_the_data(steps: int, solver) -> None:
    noise, actions = draw(2, 3, 4), draw(2, 3, 4, seed=1)
    reached = integrate(lambda x, s: velocity(noise, actions), noise, steps, solver)
    assert torch.allclose(reached, actions, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3, 10, 64])
def test_dx_ds_equal_x_is_the_known_product(steps: int) -> None:
    noise, h = draw(2, 3, 4), 1 / steps
    grow = {"euler": 1 - h, "midpoint": 1 - h + h**2 / 2, "heun": 1 - h + h**2 / 2}
    for solver, factor in grow.items():
        reached = integrate(lambda x, s: x, noise, steps, solver)  # type: ignore[arg-type]
        assert torch.allclose(reached, noise * factor**steps, atol=1e-6), solver


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_half_the_step_divides_the_error_by_two_to_the_order(solver, order) -> None:
    """dx/ds = x·cos s from s = 1 to 0: x(0) = x(1)·exp(−sin 1)."""
    start = torch.ones(1, 1, 1, dtype=torch.float64)
    exact = math.exp(-math.sin(1))
    errors = [
        abs(float(integrate(lambda x, s: x * s.double().cos()[:, None, None], start, steps, solver)) - exact)
        for steps in (20, 40)
    ]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize(
    ("solver", "levels"),
    [
        ("euler", [1.0, 0.75, 0.5, 0.25]),
        ("midpoint", [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("heun", [1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0.0]),
    ],
)
def test_velocities_are_asked_for_from_one_down_in_equal_steps(solver, levels) -> None:
    asked = []

    def record(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        asked.append(s)
        return 2 * s[:, None, None] * torch.ones_like(x)

    reached = integrate(record, torch.zeros(2, 3, 4), 4, solver)
    assert torch.allclose(torch.stack(asked), torch.tensor(levels)[:, None].expand(-1, 2))
    assert torch.equal(evaluated_levels(4, solver), torch.stack(asked)[:, 0])
    area = {"euler": 1.25, "midpoint": 1.0, "heun": 1.0}[solver]  # of 2s from 0 to 1
    assert torch.allclose(reached, torch.full((2, 3, 4), -area))


def test_no_steps_and_unknown_solvers_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one step, got 0"):
        integrate(lambda x, s: x, torch.zeros(1, 1, 1), 0)
    with pytest.raises(ConfigError, match=r"unknown sampler\.solver 'eule'.*euler"):
        integrate(lambda x, s: x, torch.zeros(1, 1, 1), 1, "eule")  # type: ignore[arg-type]

import math

import numpy as np
import pytest
import torch

from tests.evaluate.open_loop.moments import STD, two_units
from vla_mot.evaluate.open_loop.errors import ActionErrors, ErrorSums, Group, joined

ZERO = torch.zeros(2, 4, 3)


def errors(episodes=(0, 1), mask=None) -> ActionErrors:
    """Two moments. The first is off by 1, 2, 3 in its dimensions; the second by −1 rad in its last step alone. Holding
    still is off by 2 everywhere."""
    predicted = ZERO.clone()
    predicted[0] = torch.tensor([1.0, 2.0, 3.0])
    predicted[1, 3, 0] = -1
    mask = torch.ones(2, 4, dtype=torch.bool) if mask is None else mask
    sums = ErrorSums(two_units())
    for row in range(2):  # one after the other, as from two batches
        one = slice(row, row + 1)
        chunks = {"policy": predicted[one], "hold": ZERO[one] + 2}
        sums.add(ZERO[one], mask[one], chunks, torch.tensor(episodes)[one])
    return sums.errors()


def group(found: ActionErrors, label: str) -> Group:
    return next(one for one in found.groups() if one.label == label)


def test_errors_by_hand():
    found = errors()
    assert (found.moments, found.episodes, found.embodiment) == (2, 2, "lifter")
    turn, lift, gripper = (found.score(found.single(place)) for place in range(3))
    assert (turn.mse.value, turn.mae.value) == pytest.approx(((4 * 1 + 1) / 8, 5 / 8))
    assert (lift.mse.value, lift.mae.value) == pytest.approx((4 * 4 / 8, 4 * 2 / 8))
    assert (gripper.mse.value, gripper.mae.value, gripper.count) == pytest.approx((4 * 9 / 8, 4 * 3 / 8, 8))


def test_groups_keep_units_and_grippers_apart():
    found = errors()
    assert [one.label for one in found.groups()] == [
        "all (several units)", "joints (several units)", "joints (rad)", "joints (m)", "grippers (m)",
        "all (deviations)",
    ]  # fmt: skip
    assert found.score(group(found, "all (several units)")).mse.value == pytest.approx((5 + 16 + 36) / 24)
    assert found.score(group(found, "joints (several units)")).mse.value == pytest.approx((5 + 16) / 16)
    assert found.score(group(found, "joints (m)")).mse.value == pytest.approx(16 / 8)
    scaled = found.score(group(found, "all (deviations)"))
    squares = [total / (std + 1e-6) ** 2 for total, std in zip((5, 16, 36), STD, strict=True)]
    assert scaled.mse.value == pytest.approx(sum(squares) / 24, rel=1e-6)
    sizes = [total / (std + 1e-6) for total, std in zip((5, 8, 12), STD, strict=True)]
    assert scaled.mae.value == pytest.approx(sum(sizes) / 24, rel=1e-6)


def test_holding_still_stands_beside_it():
    found = errors()
    lift = found.single(1)
    assert found.score(lift, "hold").mse.value == pytest.approx(4)
    assert found.score(lift).times.value == pytest.approx(2 / 4)
    assert found.score(lift, "hold").times.value == 1


def test_every_step_of_the_horizon():
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[0, 2:] = mask[1, 3] = False  # nobody has a fourth step
    found = errors(mask=mask)
    mae, mse = found.horizon(found.single(1))[0]
    assert mae == pytest.approx([1, 1, 0, np.nan], nan_ok=True)
    assert mse == pytest.approx([2, 2, 0, np.nan], nan_ok=True)
    assert found.steps().tolist() == [2, 2, 1, 0]
    assert found.score(found.single(0)).mse.value == pytest.approx(2 / 5), "masked steps count nowhere"


def test_intervals_are_over_episodes():
    two = errors().score(Group("turn", "rad", (0,))).mse
    assert (two.low, two.high) == pytest.approx((1 / 4, 1)), "the two episodes alone"
    one = errors(episodes=(5, 5)).score(Group("turn", "rad", (0,))).mse
    assert one.value == pytest.approx(two.value)
    assert math.isnan(one.low) and math.isnan(one.high), "one episode tells nothing about others"


def test_datasets_are_joined_by_their_episodes():
    a, b = errors(), errors(episodes=(0, 0))
    both = joined([a, b])
    assert (both.episodes, both.moments) == (3, 4)
    place = both.single(0)
    assert both.score(place).mse.value == pytest.approx(a.score(place).mse.value)
    assert both.score(place).count == 2 * a.score(place).count

"""Physics: the belt carries, contacts alone make a grasp, and a badly placed finger stalls harmlessly."""

import numpy as np
import pytest

from vla_mot.envs.conveyor import Scene
from vla_mot.envs.conveyor.scene import APERTURE_MAX, BELT_Y, BLOCK_SIZE
from vla_mot.envs.conveyor.world import ConveyorWorld

pytestmark = pytest.mark.sim

ABOVE, AROUND = 0.20, BELT_Y - 0.005


def world(velocity=0.0, gripper_x=0.0, block_x=0.0, gripper_y=ABOVE):
    return ConveyorWorld(Scene(velocity, (block_x, block_x + 0.2), gripper_x, gripper_y))


def drive(w, target, steps):
    states = []
    for _ in range(steps):
        w.step(np.array(target))
        states.append(w.state())
    return states


def test_blocks_ride_at_the_belts_velocity():
    w = world(velocity=0.06, gripper_x=-0.2)
    start = w.state().block_xy
    after = drive(w, (-0.2, 0.35, APERTURE_MAX), 10)[-1].block_xy
    np.testing.assert_allclose(after - start, [[0.06, 0.0]] * 2, atol=1e-4)


def test_two_fingertip_contacts_make_a_grasp_and_opening_ends_it():
    w = world()
    drive(w, (0.0, AROUND, APERTURE_MAX), 10)
    assert w.side_contacts() == (set(), set()) and w.held is None
    drive(w, (0.0, AROUND, 0.05), 6)
    assert w.side_contacts() == ({0}, {0}) and w.held == 0
    assert w.gripper[2] == pytest.approx(BLOCK_SIZE, abs=0.002)
    lifted = drive(w, (0.05, 0.30, 0.05), 15)[-1]
    np.testing.assert_allclose(lifted.block_xy[0] - lifted.gripper[:2], [0.0, 0.005], atol=0.003)
    drive(w, (0.05, 0.30, APERTURE_MAX), 3)
    assert w.held is None


def test_closing_above_the_block_grasps_nothing():
    w = world()
    drive(w, (0.0, ABOVE, 0.05), 10)
    assert w.held is None and w.gripper[2] < BLOCK_SIZE - 0.01


def test_one_finger_alone_pushes_but_does_not_grasp():
    w = world(gripper_x=-0.12)
    drive(w, (-0.12, AROUND, 0.05), 15)
    states = drive(w, (0.02, AROUND, 0.05), 8)
    assert all(state.held is None for state in states)
    assert states[-1].block_xy[0, 0] > 0.03


@pytest.mark.parametrize("offset", [0.035, 0.05, 0.063, -0.063])
@pytest.mark.parametrize("velocity", [-0.08, 0.0, 0.08])
def test_a_finger_that_lands_on_a_block_stalls_and_nothing_explodes(offset, velocity):
    w = world(velocity=velocity, gripper_x=offset)
    for state in drive(w, (offset, AROUND, APERTURE_MAX), 12):
        assert np.all(np.abs(state.block_xy[:, 1] - BELT_Y) < 0.02)
        assert state.gripper[0] == pytest.approx(offset, abs=0.01)
        assert state.gripper[2] == pytest.approx(APERTURE_MAX, abs=0.02)
    if velocity == 0.0:
        assert state.gripper[1] > BELT_Y + BLOCK_SIZE / 2 - 0.015


def test_closing_off_centre_draws_the_block_in():
    w = world(gripper_x=0.015)
    drive(w, (0.015, AROUND, APERTURE_MAX), 10)
    drive(w, (0.015, AROUND, 0.05), 8)
    assert w.held == 0
    assert w.state().block_xy[0, 0] == pytest.approx(0.015, abs=0.003)


def test_random_commands_keep_every_number_finite_and_bounded():
    rng = np.random.default_rng(0)
    for _ in range(10):
        w = world(velocity=0.08)
        for _ in range(60):
            w.step(rng.uniform([-0.27, 0.10, 0.03], [0.27, 0.42, APERTURE_MAX]))
            state = w.state()
            assert np.all(np.abs(state.block_xy) < 0.7)
            assert abs(state.gripper[0]) < 0.28 and 0.09 < state.gripper[1] < 0.43
            assert 0.02 < state.gripper[2] < APERTURE_MAX + 0.01

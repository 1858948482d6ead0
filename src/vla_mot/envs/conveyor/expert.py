"""A scripted expert that plans chunks from a believed belt velocity, and executes them open loop.

One memoryless controller says what to command now. A plan rolls that controller out in
a simple kinematic model of the world, in which blocks ride at the *believed* velocity. So a plan is a smooth
function of the gripper's offset to the block, the velocity and the phase, and an expert with a wrong belief
fails the way a policy does that cannot see motion: it goes to where the block was.
"""

from dataclasses import dataclass, replace

import numpy as np

from vla_mot.envs.conveyor import scene as geo
from vla_mot.envs.conveyor.world import WorldState

HOVER_Y = 0.215  # m, fingertips clear of the blocks
BLOCK_EDGE_Y = geo.BELT_Y + geo.BLOCK_SIZE / 2  # m, the side of a block that faces the gripper
GRASP_Y = geo.BELT_Y - 0.005  # m, fingertips while closing
CLEAR_Y = BLOCK_EDGE_Y + 0.01  # m, above this the gripper may move along x freely
ALIGNED = 0.044  # m, descend only when closer to the block's (believed) position than this
CLOSED_APERTURE = 0.056  # m, commanded to squeeze a block
RELEASE_Y = geo.TRAY_Y - 0.01  # m, fingertips while opening over the tray
RELEASE_RADIUS = 0.025  # m
DRIVE_STEP = geo.CONTROL_DT * np.array([geo.X_SPEED, geo.Y_SPEED, geo.APERTURE_SPEED])  # m per action


@dataclass(frozen=True)
class _Belief:
    """The kinematic model that a plan is rolled out in: metres, and one block only."""

    gripper: np.ndarray  # (3,) x, y, aperture
    block_x: float
    block_y: float
    velocity: float  # m/s
    held: bool


def plan_chunk(state: WorldState, target: int, velocity: float, steps: int) -> np.ndarray:
    """Plan `steps` actions that fetch one block, believing that the belt runs at `velocity`.

    Args:
        state: the world now; its own `belt_velocity` is not read.
        target: index into `COLORS` of the block to fetch.
        velocity: believed belt velocity, m/s along x.
        steps: length of the chunk.

    Returns:
        (steps, 3) float32, position targets (x, y, aperture) in metres, one per control step; a target may take
        several steps to reach.
    """
    x, y = state.block_xy[target]
    belief = _Belief(np.array(state.gripper), float(x), float(y), velocity, state.held == target)
    actions = np.empty((steps, 3), np.float32)
    for step in range(steps):
        command = _next_command(belief)
        actions[step] = command
        belief = _advance(belief, command)
    return actions


def _next_command(belief: _Belief) -> np.ndarray:
    """The (x, y, aperture) in metres to command now.

    Goals, not small steps: the drives' own limits shape the way there. So an action hardly depends on where a
    disturbance has put the gripper, and the actions recorded after a disturbance still fit the chunk that
    began before it.
    """
    if belief.held:
        return _carry(belief)
    if belief.block_y > HOVER_Y:  # already delivered: stay over the tray, open
        return np.array([geo.TRAY_X, RELEASE_Y, geo.APERTURE_MAX])
    return _fetch(belief)


def _fetch(belief: _Belief) -> np.ndarray:
    x, y, aperture = belief.gripper
    meet_x = float(np.clip(belief.block_x + belief.velocity * geo.CONTROL_DT, -geo.X_LIMIT, geo.X_LIMIT))
    if _between_fingers(belief):
        squeeze = y < GRASP_Y + 0.015
        return np.array([meet_x, GRASP_Y, CLOSED_APERTURE if squeeze else geo.APERTURE_MAX])
    is_open = aperture > geo.APERTURE_MAX - 0.01
    aligned = abs(meet_x - x) < ALIGNED
    goal_x = meet_x if aligned or y > CLEAR_Y else x
    return np.array([goal_x, GRASP_Y if is_open and aligned else HOVER_Y, geo.APERTURE_MAX])


def _carry(belief: _Belief) -> np.ndarray:
    x, y, _ = belief.gripper
    if abs(x - geo.TRAY_X) < RELEASE_RADIUS and abs(y - RELEASE_Y) < RELEASE_RADIUS:
        return np.array([geo.TRAY_X, RELEASE_Y, geo.APERTURE_MAX])
    # Off the belt first, then sideways, so that the neighbour is not swept along.
    freedom = float(np.clip((y - GRASP_Y) / 0.06, 0.0, 1.0))
    return np.array([x + freedom * (geo.TRAY_X - x), RELEASE_Y, CLOSED_APERTURE])


def _between_fingers(belief: _Belief) -> bool:
    x, y, aperture = belief.gripper
    slack = (aperture - geo.BLOCK_SIZE) / 2
    return y < BLOCK_EDGE_Y and abs(belief.block_x - x) < max(slack, 0.0) + 0.006


def _advance(belief: _Belief, command: np.ndarray) -> _Belief:
    moved = belief.gripper + np.clip(command - belief.gripper, -DRIVE_STEP, DRIVE_STEP)
    between = _between_fingers(belief)
    if between:
        moved[2] = max(moved[2], geo.BLOCK_SIZE)
    if belief.held and command[2] <= geo.BLOCK_SIZE:
        dx, dy = moved[:2] - belief.gripper[:2]
        return replace(belief, gripper=moved, block_x=belief.block_x + dx, block_y=belief.block_y + dy)
    held = between and command[2] < geo.BLOCK_SIZE and moved[2] <= geo.BLOCK_SIZE
    on_belt = abs(belief.block_y - geo.BELT_Y) < geo.BELT_WIDTH / 2
    drift = belief.velocity * geo.CONTROL_DT if on_belt else 0.0
    return replace(belief, gripper=moved, block_x=belief.block_x + drift, held=held)


class ChunkExpert:
    """Replans every `horizon` steps and executes the chunk open loop, exactly as a learned policy does.

    Args:
        horizon: actions executed per plan (a policy's `n_action_steps`).
        velocity: believed belt velocity in m/s; None believes the true one.
        position_noise: standard deviation in metres of the block's x as seen at each replanning.
        seed: of that noise.
    """

    def __init__(
        self,
        horizon: int = 10,
        velocity: float | None = None,
        position_noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.horizon = horizon
        self._velocity = velocity
        self._position_noise = position_noise
        self._rng = np.random.default_rng(seed)
        self._queue: list[np.ndarray] = []

    def reset(self) -> None:
        """Forget the rest of the current chunk: a new episode begins."""
        self._queue.clear()

    def act(self, state: WorldState, target: int) -> np.ndarray:
        """The next action (3,) float32 in metres; looks at `state` only when a new chunk is due."""
        if not self._queue:
            velocity = state.belt_velocity if self._velocity is None else self._velocity
            seen = state.block_xy + [self._rng.normal(0.0, self._position_noise), 0.0]
            self._queue = list(plan_chunk(replace(state, block_xy=seen), target, velocity, self.horizon))
        return self._queue.pop(0)

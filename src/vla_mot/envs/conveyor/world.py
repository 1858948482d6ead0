"""Physics of the conveyor in pymunk: a belt, two blocks, and a force-limited planar gripper.

There is no gravity in the plane. A block is dragged towards the velocity of the surface under it (the belt,
or the table at rest) by Coulomb friction. The gripper's drives are velocity servos with limited speed and
force, so a finger that meets a block stalls or pushes it instead of passing through. A grasp is a joint that
is created only when both fingertips report contact with opposite sides of the same block, and is removed when
the fingers open wider than the block.
"""

from dataclasses import dataclass

import numpy as np
import pymunk

from vla_mot.envs.conveyor import scene as geo

SUBSTEPS = 10  # physics steps per action
BLOCK_MASS = 0.1  # kg
SURFACE_FRICTION_FORCE = 0.6 * 9.81 * BLOCK_MASS  # N, belt or table on a block
PALM_MASS, FINGER_MASS = 0.5, 0.1  # kg
PALM_FORCE = (8.0, 4.0)  # N, along x and y
FINGER_FORCE = 3.0  # N
PALM_OFFSET = geo.FINGER_LENGTH  # m, palm above the fingertips
RELEASE_GAP = 0.003  # m, fingers this much wider apart than a block let go of it
SIDE_NORMAL = 0.7  # a contact whose |normal.x| exceeds this is on a block's side


@dataclass(frozen=True)
class WorldState:
    """What only the simulator knows, for scripted experts and verdicts.

    Attributes:
        gripper: (x, y, aperture) in metres.
        fingers: of the left and the right finger, its inner side's distance in metres to the palm's middle; they add
            up to the aperture.
        block_xy: (2, 2), block centres in metres, in the order of `COLORS`.
        held: index into `COLORS` of the grasped block, or None.
        belt_velocity: m/s along x, signed.
    """

    gripper: tuple[float, float, float]
    fingers: tuple[float, float]
    block_xy: np.ndarray
    held: int | None
    belt_velocity: float


class ConveyorWorld:
    """One episode's physics; build a new one per episode, so that a seed decides everything."""

    def __init__(self, scene: geo.Scene) -> None:
        self.scene = scene
        self.held: int | None = None
        self._joint: pymunk.PivotJoint | None = None
        self._space = pymunk.Space()
        self._space.iterations = 20
        self._space.collision_slop = 2e-4  # m; the default suits pixels
        self._space.collision_bias = 1e-4  # per second, share of an overlap that remains
        self._add_fence()
        self._blocks = [self._add_block(x) for x in scene.block_x]
        self._palm = self._add_palm(scene.gripper_x, scene.gripper_y + PALM_OFFSET)
        self._fingers = [self._add_finger(side) for side in (-1, 1)]
        self._block_index = {shape: i for i, body in enumerate(self._blocks) for shape in body.shapes}

    # -- reading -----------------------------------------------------------------------------------------

    @property
    def gripper(self) -> tuple[float, float, float]:
        """(x, y, aperture) in metres: fingertip midpoint and the free space between the fingers."""
        left, right = (finger.position.x for finger in self._fingers)
        palm = self._palm.position
        return palm.x, palm.y - PALM_OFFSET, right - left - geo.FINGER_WIDTH

    @property
    def finger_x(self) -> tuple[float, float]:
        """Centres of the left and right finger in metres."""
        return self._fingers[0].position.x, self._fingers[1].position.x

    @property
    def fingers(self) -> tuple[float, float]:
        """How far the left and the right finger are open, in metres from the palm's middle."""
        left, right = self.finger_x
        middle, half = self._palm.position.x, geo.FINGER_WIDTH / 2
        return middle - left - half, right - middle - half

    def state(self) -> WorldState:
        """A snapshot of everything, the belt's velocity included."""
        xy = np.array([tuple(body.position) for body in self._blocks])
        return WorldState(self.gripper, self.fingers, xy, self.held, self.scene.belt_velocity)

    # -- stepping ----------------------------------------------------------------------------------------

    def step(self, target: np.ndarray) -> None:
        """Advance `CONTROL_DT` towards a target in metres, within the speed limits.

        target: (x, y, aperture), where one motor moves both fingers alike, or (x, y, left, right), see `fingers`.
        """
        start, goal = self._start_and_goal(target)
        limit = np.array([geo.X_SPEED, geo.Y_SPEED, geo.APERTURE_SPEED / 2, geo.APERTURE_SPEED / 2])
        rate = np.clip((goal - start) / geo.CONTROL_DT, -limit, limit)
        dt = geo.CONTROL_DT / SUBSTEPS
        for substep in range(2, SUBSTEPS + 2):
            x, y, left, right = (start + rate * (substep * dt)).tolist()
            squeezes = self._squeezes((left, right), dt)
            # Of one motor's two fingers the reactions cancel; those of two drives are the palm's to hold.
            acceleration = self._drive_palm(x, y, dt, reaction=sum(squeezes) if len(target) == 4 else 0.0)
            self._drive_fingers(squeezes, acceleration)
            self._drag_blocks(dt)
            self._space.step(dt)
            self._update_grasp()

    def _start_and_goal(self, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(x, y, left, right) where the drives are and where they go; a shared motor knows only the aperture."""
        x, y, aperture = self.gripper
        if len(target) == 4:
            return np.array([x, y, *self.fingers]), target
        return np.array([x, y, aperture / 2, aperture / 2]), np.array([*target[:2], *[target[2] / 2] * 2])

    # Forces, not impulses: pymunk moves bodies first and then lets contacts resist what forces add, so a
    # velocity chosen now acts on the next substep's positions. Hence the look one substep ahead.

    def _drive_palm(self, x: float, y: float, dt: float, reaction: float) -> float:
        """Push the palm towards (x, y), against the fingers' reaction; returns the acceleration along x that the
        fingers must share."""
        mass = PALM_MASS + 2 * FINGER_MASS + (BLOCK_MASS if self._joint else 0.0)
        position, velocity = self._palm.position, self._palm.velocity
        wanted_x = _clip((x - position.x) / dt - velocity.x, geo.X_SPEED)
        wanted_y = _clip((y + PALM_OFFSET - position.y) / dt - velocity.y, geo.Y_SPEED)
        force_x = _clip(mass * (wanted_x - velocity.x) / dt + reaction, PALM_FORCE[0])
        force_y = _clip(mass * (wanted_y - velocity.y) / dt, PALM_FORCE[1])
        self._palm.apply_force_at_local_point((force_x, force_y))
        return (force_x - reaction) / mass

    def _squeezes(self, openings: tuple[float, float], dt: float) -> list[float]:
        """The forces along x in N that bring the left and the right finger to these openings."""
        palm, forces = self._palm, []
        for side, opening, finger in zip((-1, 1), openings, self._fingers, strict=True):
            offset = side * (opening + geo.FINGER_WIDTH / 2)
            speed = finger.velocity.x - palm.velocity.x
            error = offset - (finger.position.x - palm.position.x)
            wanted = _clip(error / dt - speed, geo.APERTURE_SPEED / 2)
            forces.append(_clip(FINGER_MASS * (wanted - speed) / dt, FINGER_FORCE))
        return forces

    def _drive_fingers(self, squeezes: list[float], acceleration: float) -> None:
        for finger, squeeze in zip(self._fingers, squeezes, strict=True):
            force = squeeze + FINGER_MASS * acceleration
            finger.apply_force_at_local_point((force, 0.0))
            self._palm.apply_force_at_local_point((-force, 0.0))

    def _drag_blocks(self, dt: float) -> None:
        for body in self._blocks:
            on_belt = abs(body.position.y - geo.BELT_Y) < geo.BELT_WIDTH / 2
            slip_x = (self.scene.belt_velocity if on_belt else 0.0) - body.velocity.x
            slip_y = -body.velocity.y
            slip = (slip_x**2 + slip_y**2) ** 0.5
            if slip > 1e-9:
                force = min(BLOCK_MASS * slip / dt, SURFACE_FRICTION_FORCE)
                body.apply_force_at_local_point((force * slip_x / slip, force * slip_y / slip))

    # -- grasping ----------------------------------------------------------------------------------------

    def side_contacts(self) -> tuple[set[int], set[int]]:
        """Blocks whose side the left and the right fingertip touch, as pymunk reports it."""
        return self._touched(self._fingers[0]), self._touched(self._fingers[1])

    def _touched(self, finger: pymunk.Body) -> set[int]:
        touched: set[int] = set()

        def collect(arbiter: pymunk.Arbiter) -> None:
            for shape in arbiter.shapes:
                if shape in self._block_index and abs(arbiter.normal.x) > SIDE_NORMAL:
                    touched.add(self._block_index[shape])

        finger.each_arbiter(collect)
        return touched

    def _update_grasp(self) -> None:
        if self.held is not None:
            if self.gripper[2] > geo.BLOCK_SIZE + RELEASE_GAP:
                self._space.remove(self._joint)
                self._joint, self.held = None, None
            return
        left, right = self.side_contacts()
        if left & right:
            self.held = min(left & right)
            block = self._blocks[self.held]
            self._joint = pymunk.PivotJoint(self._palm, block, tuple(block.position))
            self._joint.collide_bodies = False
            self._space.add(self._joint)

    # -- building ----------------------------------------------------------------------------------------

    def _add_fence(self) -> None:
        """A rail along the belt's far edge, so that a block cannot be pushed off sideways."""
        y = geo.BELT_Y - geo.BELT_WIDTH / 2 - 0.01
        fence = pymunk.Segment(self._space.static_body, (-1.0, y), (1.0, y), 0.01)
        fence.friction = 0.1
        self._space.add(fence)

    def _add_block(self, x: float) -> pymunk.Body:
        # An infinite moment: blocks slide but do not turn, so that a picture of one is always a square.
        body = pymunk.Body(BLOCK_MASS, float("inf"))
        body.position = (x, geo.BELT_Y)
        body.velocity = (self.scene.belt_velocity, 0.0)
        shape = pymunk.Poly.create_box(body, (geo.BLOCK_SIZE, geo.BLOCK_SIZE))
        shape.friction = 0.3
        self._space.add(body, shape)
        return body

    def _add_palm(self, x: float, y: float) -> pymunk.Body:
        body = pymunk.Body(PALM_MASS, float("inf"))
        body.position = (x, y)
        self._space.add(body)
        return body

    def _add_finger(self, side: int) -> pymunk.Body:
        body = pymunk.Body(FINGER_MASS, float("inf"))
        body.position = self._palm.position + (side * (geo.APERTURE_MAX + geo.FINGER_WIDTH) / 2, 0.0)
        half = geo.FINGER_WIDTH / 2
        corners = [(-half, 0.0), (half, 0.0), (half, -PALM_OFFSET), (-half, -PALM_OFFSET)]
        shape = pymunk.Poly(body, corners)
        shape.friction = 0.1
        shape.filter = pymunk.ShapeFilter(group=1)
        slide = pymunk.GrooveJoint(self._palm, body, (-0.2, 0.0), (0.2, 0.0), (0.0, 0.0))
        slide.collide_bodies = False
        self._space.add(body, shape, slide)
        return body


def _clip(value: float, limit: float) -> float:
    return max(-limit, min(limit, value))

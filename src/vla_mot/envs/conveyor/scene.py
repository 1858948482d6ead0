"""Where things are, in metres and seconds, and what is random about an episode.

The world is a table seen from above. `x` runs along the belt to the right, `y` away from it, and the head
camera sees the square x in [-0.30, 0.30], y in [0, 0.60]. The gripper reaches in from the top of the
picture; its position is the point midway between its two fingertips.

    y 0.60  ─────────────┬────────────  the arm comes from here
                     ┌───┴───┐
    y 0.44           │       │          fingertips at the start
                  ┌──┴───────┴──┐
    y 0.36        └─── tray ────┘       0.29 … 0.43: where a picked block belongs
    y 0.21                              hover: fingertips clear of the blocks
    y 0.12  ══ ■ ═══════ ■ ══════════   the belt, and two blocks riding on it

The numbers below decide how much motion matters. A gripper that dives at once passes the blocks' edge (y 0.156)
after 18 steps of 0.1 s. A policy that acts in chunks of 10 last looked 0.8 s before that, and since then the belt
has moved 36 … 52 mm, where the open fingers forgive 20 mm. Whoever knows the velocity has those 20 mm as margin.
"""

from dataclasses import dataclass

import numpy as np

COLORS = ("red", "blue")

CONTROL_DT = 0.1  # s, one action (10 Hz)
VIEW_WIDTH = 0.60  # m, side of the square that the head camera sees
BLOCK_SIZE = 0.072  # m, side of a block: 12 % of the head picture

BELT_Y = 0.12  # m, centre line of the belt
BELT_WIDTH = 0.10  # m
BELT_HALF_LENGTH = 0.315  # m, a block whose centre passes this has left the belt

TRAY_X, TRAY_Y = 0.0, 0.36  # m, centre of the tray
TRAY_HALF_WIDTH, TRAY_HALF_HEIGHT = 0.09, 0.07  # m

FINGER_WIDTH, FINGER_LENGTH = 0.014, 0.085  # m
APERTURE_MIN, APERTURE_MAX = 0.03, 0.112  # m, free space between the fingers
X_LIMIT = 0.27  # m, the gripper stays within +-X_LIMIT
Y_MIN, Y_MAX = 0.10, 0.46  # m, fingertip range

X_SPEED, Y_SPEED, APERTURE_SPEED = 0.20, 0.16, 0.20  # m/s, limits of the gripper's drives

BELT_SPEED = (0.045, 0.065)  # m/s, range of |velocity|
BLOCK_SPACING = (0.15, 0.17)  # m, between the two block centres at the start
BLOCK_MIDPOINT = 0.05  # m, the blocks' midpoint starts within +- this
GRIPPER_START_X = 0.04  # m, the gripper starts within +- this
GRIPPER_START_Y = (0.432, 0.448)  # m


@dataclass(frozen=True)
class Scene:
    """The random part of an episode; drawn before, and independent of, the instruction.

    Attributes:
        belt_velocity: m/s along x, signed; independent of every other field.
        block_x: m, start of each block, in the order of `COLORS`.
        gripper_x, gripper_y: m, fingertip start.
    """

    belt_velocity: float
    block_x: tuple[float, float]
    gripper_x: float
    gripper_y: float


def instruction(color: str) -> str:
    """The sentence that names the block of this colour."""
    return f"pick the {color} block"


def sample_scene(rng: np.random.Generator, motion: str = "dynamic") -> Scene:
    """Draw an episode's scene; `motion="static"` draws the same scene with the belt at rest."""
    speed = rng.uniform(*BELT_SPEED)
    sign = 1.0 if rng.random() < 0.5 else -1.0
    middle = rng.uniform(-BLOCK_MIDPOINT, BLOCK_MIDPOINT)
    half = rng.uniform(*BLOCK_SPACING) / 2
    side = 1.0 if rng.random() < 0.5 else -1.0
    return Scene(
        belt_velocity=0.0 if motion == "static" else sign * speed,
        block_x=(middle - side * half, middle + side * half),
        gripper_x=rng.uniform(-GRIPPER_START_X, GRIPPER_START_X),
        gripper_y=rng.uniform(*GRIPPER_START_Y),
    )

"""The robots that can stand at the belt: what they are told, what they feel, what sees them, what they look like.

All of them are one gripper in the same scenes. What differs is in the table at the end; adding one is an entry.

    planar   x, y, aperture       one motor moves both fingers      cameras head and gripper
    fingers  x, y, left, right    each finger has a motor           camera overhead, which sees more of the table
    hand     planar's motion      looks like a person's hand        camera head

Everyone plans for a gripper, (x, y, aperture); `ConveyorRobot.command` says it in the robot's own action.
"""

from dataclasses import dataclass

import numpy as np

from vla_mot.envs.conveyor import scene as geo
from vla_mot.envs.conveyor.world import WorldState


@dataclass(frozen=True)
class Camera:
    """What a camera looks down on: a square of `width` metres around (x, y).

    moves: (x, y) is counted from the fingertips instead of the table's origin.
    """

    width: float
    x: float
    y: float
    moves: bool = False


CAMERAS = {
    "head": Camera(geo.VIEW_WIDTH, 0.0, geo.VIEW_WIDTH / 2),
    "gripper": Camera(0.26, 0.0, -0.03, moves=True),
    "overhead": Camera(0.76, 0.0, 0.28),
}


@dataclass(frozen=True)
class ConveyorRobot:
    """One robot.

    name: as the environment's option `robot`. cameras: of `CAMERAS`, in order.
    separate: each finger has its own drive. look: how it is drawn, see `render.LOOKS`.
    """

    name: str
    cameras: tuple[str, ...]
    separate: bool = False
    look: str = "gripper"

    @property
    def action_names(self) -> tuple[str, ...]:
        """Dimensions of an action: position targets in metres. left, right: a finger's side to the palm's middle."""
        return ("x", "y", "left", "right") if self.separate else ("x", "y", "aperture")

    @property
    def state_names(self) -> tuple[str, ...]:
        """Dimensions of the state: those of an action, and `holding`, 1.0 while both fingers feel a block."""
        return (*self.action_names, "holding")

    @property
    def action_low(self) -> np.ndarray:
        """(A,) float32, the least action."""
        return self.command(np.array([-geo.X_LIMIT, geo.Y_MIN, geo.APERTURE_MIN], np.float32))

    @property
    def action_high(self) -> np.ndarray:
        """(A,) float32, the largest action."""
        return self.command(np.array([geo.X_LIMIT, geo.Y_MAX, geo.APERTURE_MAX], np.float32))

    def command(self, gripper: np.ndarray) -> np.ndarray:
        """What a gripper should do, (3,) x, y, aperture in metres → this robot's action (A,) of the same dtype."""
        if not self.separate:
            return gripper
        x, y, aperture = gripper
        return np.array([x, y, aperture / 2, aperture / 2], gripper.dtype)

    def feel(self, state: WorldState) -> np.ndarray:
        """The state (S,) float32 of this robot; nothing that only the simulator knows."""
        x, y, aperture = state.gripper
        fingers = state.fingers if self.separate else (aperture,)
        return np.array([x, y, *fingers, float(state.held is not None)], np.float32)


ROBOTS = {
    robot.name: robot
    for robot in (
        ConveyorRobot("planar", cameras=("head", "gripper")),
        ConveyorRobot("fingers", cameras=("overhead",), separate=True),
        ConveyorRobot("hand", cameras=("head",), look="hand"),
    )
}

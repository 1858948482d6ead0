"""Software pictures of the conveyor: pygame surfaces without a display, antialiased by supersampling.

The scene is drawn several times larger than asked for and averaged down, so a block that moves a tenth of a
pixel changes the picture. Nothing that moves with the belt is drawn on it: no single picture tells its speed.
"""

import os
import warnings
from collections.abc import Callable

import numpy as np

from vla_mot.envs.conveyor import scene as geo
from vla_mot.envs.conveyor.robots import Camera
from vla_mot.envs.conveyor.world import WorldState

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pygame's own use of pkg_resources
    import pygame

Color = tuple[int, int, int]
TABLE: Color = (236, 232, 224)
BELT: Color = (92, 97, 106)
RAIL: Color = (58, 62, 69)
TRAY: Color = (200, 226, 200)
TRAY_EDGE: Color = (92, 158, 104)
STEEL: Color = (74, 82, 96)
FINGERTIP: Color = (250, 190, 40)
SKIN: Color = (214, 160, 126)
NAIL: Color = (240, 206, 186)
SLEEVE: Color = (118, 84, 128)
BLOCKS: tuple[Color, Color] = ((226, 44, 44), (40, 92, 232))
BLOCK_SHADES: tuple[Color, Color] = ((168, 24, 24), (22, 58, 172))

CANVAS = 512  # pixels, least side of the picture before averaging down


class Renderer:
    """Draws what cameras see at `image_size` pixels; holds reusable canvases and nothing of the episode.

    look: of the robot, a name in `LOOKS`.
    """

    def __init__(self, image_size: int, look: str = "gripper") -> None:
        self._size = image_size
        self._draw_robot = LOOKS[look]
        self._canvases: dict[int, pygame.Surface] = {}

    def picture(
        self, camera: Camera, state: WorldState, finger_x: tuple[float, float], size: int | None = None
    ) -> np.ndarray:
        """What a camera sees, (size, size, 3) uint8."""
        size = size or self._size
        x, y, _ = state.gripper if camera.moves else (0.0, 0.0, 0.0)
        view = _View(self._canvas(size), camera.width, x + camera.x, y + camera.y)
        _draw_table(view)
        for color, shade, (block_x, block_y) in zip(BLOCKS, BLOCK_SHADES, state.block_xy, strict=True):
            view.box(shade, block_x, block_y, geo.BLOCK_SIZE, geo.BLOCK_SIZE)
            view.box(color, block_x, block_y, geo.BLOCK_SIZE - 0.010, geo.BLOCK_SIZE - 0.010)
        self._draw_robot(view, state, finger_x)
        small = pygame.transform.smoothscale(view.canvas, (size, size))
        return np.ascontiguousarray(pygame.surfarray.pixels3d(small).swapaxes(0, 1))

    def _canvas(self, size: int) -> pygame.Surface:
        side = size * max(2, -(-CANVAS // size))
        if side not in self._canvases:
            self._canvases[side] = pygame.Surface((side, side), depth=32)
        return self._canvases[side]


class _View:
    """Draws rectangles given in metres onto a square canvas that shows a square of the world."""

    def __init__(self, canvas: pygame.Surface, width: float, x: float, y: float) -> None:
        self.canvas = canvas
        self._scale = canvas.get_width() / width
        self._left, self._top = x - width / 2, y + width / 2

    def box(self, color: Color, x: float, y: float, width: float, height: float) -> None:
        """Fill a rectangle centred at (x, y)."""
        side, scale = self.canvas.get_width(), self._scale
        left = max(round((x - width / 2 - self._left) * scale), 0)
        right = min(round((x + width / 2 - self._left) * scale), side)
        top = max(round((self._top - y - height / 2) * scale), 0)
        bottom = min(round((self._top - y + height / 2) * scale), side)
        if left < right and top < bottom:
            self.canvas.fill(color, (left, top, right - left, bottom - top))


def _draw_table(view: _View) -> None:
    view.canvas.fill(TABLE)
    view.box(RAIL, 0.0, geo.BELT_Y, 2.0, geo.BELT_WIDTH + 0.024)
    view.box(BELT, 0.0, geo.BELT_Y, 2.0, geo.BELT_WIDTH)
    view.box(TRAY_EDGE, geo.TRAY_X, geo.TRAY_Y, 2 * geo.TRAY_HALF_WIDTH, 2 * geo.TRAY_HALF_HEIGHT)
    view.box(TRAY, geo.TRAY_X, geo.TRAY_Y, 2 * geo.TRAY_HALF_WIDTH - 0.012, 2 * geo.TRAY_HALF_HEIGHT - 0.012)


def _draw_gripper(view: _View, state: WorldState, finger_x: tuple[float, float]) -> None:
    x, y, _ = state.gripper
    palm_y = y + geo.FINGER_LENGTH
    view.box(STEEL, x, palm_y + 0.35, 0.034, 0.70)
    view.box(STEEL, x, palm_y + 0.008, geo.APERTURE_MAX + 2 * geo.FINGER_WIDTH, 0.024)
    for finger in finger_x:
        view.box(STEEL, finger, y + geo.FINGER_LENGTH / 2, geo.FINGER_WIDTH, geo.FINGER_LENGTH)
        view.box(FINGERTIP, finger, y + 0.0125, geo.FINGER_WIDTH, 0.025)


def _draw_hand(view: _View, state: WorldState, finger_x: tuple[float, float]) -> None:
    """A forearm in a sleeve, the back of a hand, and two fingers where the gripper has its own."""
    x, y, _ = state.gripper
    wrist_y = y + geo.FINGER_LENGTH + 0.05
    view.box(SKIN, x, wrist_y + 0.35, 0.052, 0.70)
    view.box(SLEEVE, x, wrist_y + 0.05 + 0.35, 0.072, 0.70)
    view.box(SKIN, x, wrist_y - 0.025, geo.APERTURE_MAX + 2 * geo.FINGER_WIDTH - 0.02, 0.07)
    for finger in finger_x:
        view.box(SKIN, finger, y + geo.FINGER_LENGTH / 2, geo.FINGER_WIDTH + 0.004, geo.FINGER_LENGTH)
        view.box(NAIL, finger, y + 0.011, geo.FINGER_WIDTH - 0.004, 0.014)


LOOKS: dict[str, Callable[[_View, WorldState, tuple[float, float]], None]] = {
    "gripper": _draw_gripper,
    "hand": _draw_hand,
}

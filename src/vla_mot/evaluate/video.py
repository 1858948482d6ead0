"""What the cameras saw and what the policy foresaw, as a small mp4 (h264, through PyAV).

Legend: `h`/`w` a camera's own pixels.
"""

from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

_TILE = 192  # pixels, side of one picture in the video
_BAR = 24  # pixels, height of a caption
_INK, _PAPER = (235, 235, 235), (24, 26, 30)


class EpisodeVideo:
    """Collects one picture per control step: the cameras above, what was foreseen below, a caption on top."""

    def __init__(self) -> None:
        self._frames: list[np.ndarray] = []
        self._has_foresight = False

    def add(
        self, cameras: Mapping[str, np.ndarray], foreseen: Mapping[str, np.ndarray], caption: str
    ) -> None:
        """Append a step: camera → `(h, w, 3)` uint8, the same of what is foreseen (or none), and a line of text."""
        self._has_foresight = self._has_foresight or bool(foreseen)
        rows = 2 if self._has_foresight else 1
        sheet = Image.new("RGB", (_TILE * len(cameras), (_BAR + _TILE) * rows), _PAPER)
        draw = ImageDraw.Draw(sheet)
        draw.text((8, 4), caption, fill=_INK, font_size=14)
        if rows == 2:
            draw.text((8, _BAR + _TILE + 4), "foreseen" if foreseen else "", fill=_INK, font_size=14)
        for column, (name, picture) in enumerate(cameras.items()):
            sheet.paste(_tile(picture), (column * _TILE, _BAR))
            if name in foreseen:
                sheet.paste(_tile(foreseen[name]), (column * _TILE, 2 * _BAR + _TILE))
        self._frames.append(np.asarray(sheet))

    def write(self, path: Path, fps: int) -> None:
        """Write the mp4, making its folder if needed. Nothing is foreseen at first where chunks come late: those
        steps get an empty row below, as high as that of the others."""
        height = max((len(frame) for frame in self._frames), default=0)
        write_video(path, [_padded(frame, height) for frame in self._frames], fps)


def write_video(path: Path, frames: list[np.ndarray], fps: int) -> None:
    """Write `(H, W, 3)` uint8 frames of even height and width. Raises ValueError unless all are of one size."""
    if len(sizes := {frame.shape for frame in frames}) != 1:
        raise ValueError(f"the frames of {path} must be of one size, got {sorted(sizes) or 'none'}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "20", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _padded(frame: np.ndarray, height: int) -> np.ndarray:
    sheet = np.full((height, *frame.shape[1:]), _PAPER, dtype=np.uint8)
    sheet[: len(frame)] = frame
    return sheet


def _tile(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(picture)).resize((_TILE, _TILE), Image.Resampling.NEAREST)

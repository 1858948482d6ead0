"""What a model foresees, as one picture: past, present, true future and foreseen future of a few samples.

Legend: `N` samples, `V` views, `C` latent channels, `h`/`w` latent rows and columns, `H`/`W` pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vla_mot.batch import Batch
from vla_mot.evaluate.foresight import true_pictures
from vla_mot.evaluate.wording import psnr
from vla_mot.model.model import VlaMotModel
from vla_mot.robots.embodiment import CAMERA_PREFIX
from vla_mot.robots.images import to_bytes
from vla_mot.train.origins import Origin

COLUMNS = ("past, t - m", "present, t", "true future, t + m", "foreseen, t + m")
_TILE, _GAP, _LINE = 144, 6, 20  # pixels
_INK, _DIM, _PAPER = (235, 235, 235), (150, 158, 168), (24, 26, 30)


@dataclass(frozen=True)
class Strip:
    """One view of one sample. caption: where it comes from. The pictures: `(H, W, 3)` uint8 each."""

    caption: str
    past: np.ndarray
    present: np.ndarray
    future: np.ndarray
    foreseen: np.ndarray


@dataclass(frozen=True)
class _Kept:
    """A sample that may be shown, on the CPU: a batch of one and its foreseen latents `(1, V, C, h, w)`."""

    moving: int
    sample: Batch
    foreseen: Tensor


class Album:
    """Keeps few of many samples: of every part of the order in which they come, the one in which most moves.

    size: samples that are kept. coming: how many will be offered.
    """

    def __init__(self, size: int, coming: int) -> None:
        self.size, self.coming = size, coming
        self._seen = 0
        self._first: _Kept | None = None
        self._best: dict[int, _Kept] = {}

    def offer(self, batch: Batch, foreseen: Tensor, moving: Tensor) -> None:
        """foreseen: latents `(B, V, C, h, w)`. moving: cells that move, `(B, V, h, w)` bool."""
        if not self.size:
            return
        counts = moving.flatten(1).sum(1).tolist()
        shown = batch.future_mask.any(1).tolist()
        for row, count in enumerate(counts):
            part, one = self._seen * self.size // self.coming, slice(row, row + 1)
            self._seen += 1
            held = self._best.get(part)
            better = shown[row] and (held is None or count > held.moving)
            if not better and self._first is not None:
                continue
            kept = _Kept(count, batch[one].to("cpu"), foreseen[one].float().cpu())
            self._first = self._first or kept
            if better:
                self._best[part] = kept

    def strips(self, model: VlaMotModel, origins: Sequence[Origin]) -> list[Strip]:
        """Decode what is kept: one call of the tokenizer, on every rank, for its weights may be sharded."""
        kept = [self._best[part] for part in sorted(self._best)]
        shown = kept or ([self._first] if self._first else [])
        if not shown:
            return []
        drawn = _decoded(model, shown)
        return [
            strip
            for one, pictures in zip(kept, drawn, strict=False)
            for strip in _strips(one.sample, pictures, origins)
        ]


def _decoded(model: VlaMotModel, kept: Sequence[_Kept]) -> list[dict[str, np.ndarray]]:
    """Column → `(V, H, W, 3)` uint8, of every sample.

    Where a batch carries latents it has no other pixels than the present's: past and future are decoded too.
    """
    device = next(model.parameters()).device
    latents = [_latents(one) for one in kept]
    together = torch.cat([part for one in latents for part in one.values()]).to(device)
    pictures = iter(model.decode_latents(together).split(1))
    found = []
    for one, names in zip(kept, latents, strict=True):
        decoded = {name: next(pictures) for name in names}
        frames = one.sample.observation.images.to(device)
        pixels = {"past": frames[:, :, 0], "present": frames[:, :, 1], "future": one.sample.future.to(device)}
        drawn = {name: true_pictures(model, view) for name, view in pixels.items()} | decoded
        found.append({name: to_bytes(view[0].movedim(1, -1)).cpu().numpy() for name, view in drawn.items()})
    return found


def _latents(kept: _Kept) -> dict[str, Tensor]:
    """Column → latents `(1, V, C, h, w)` that it is to be decoded from."""
    seen, future = kept.sample.observation.latents, kept.sample.future_latents
    past = {} if seen is None else {"past": seen[:, :, 0].float()}
    return past | ({} if future is None else {"future": future.float()}) | {"foreseen": kept.foreseen}


def _strips(sample: Batch, pictures: dict[str, np.ndarray], origins: Sequence[Origin]) -> list[Strip]:
    place = ""
    cameras: tuple[str | None, ...] = ()
    if sample.origin is not None and origins:
        number, episode, frame = sample.origin[0].tolist()
        place, cameras = (
            f"{origins[number].dataset}, episode {episode}, frame {frame}, ",
            origins[number].cameras,
        )
    names = [(key or "").removeprefix(CAMERA_PREFIX) for key in cameras]
    found = []
    for view, seen in enumerate(sample.future_mask[0].tolist()):
        if seen:
            name = names[view] if view < len(names) and names[view] else f"view {view}"
            found.append(Strip(f"{place}{name}", **{key: array[view] for key, array in pictures.items()}))
    return found


def draw_grid(strips: Sequence[Strip]) -> np.ndarray:
    """All strips below one another, as `(H, W, 3)` uint8, with what each is and how near the true future it is."""
    columns = [field.name for field in fields(Strip)][1:]
    width = _GAP + len(columns) * (_TILE + _GAP)
    pitch = _LINE + _TILE + _GAP
    sheet = Image.new("RGB", (width, _GAP + _LINE + len(strips) * pitch), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(COLUMNS):
        draw.text((_GAP + column * (_TILE + _GAP), _GAP), text, fill=_INK, font_size=13)
    for row, strip in enumerate(strips):
        top = _GAP + _LINE + row * pitch
        draw.text((_GAP, top + 2), strip.caption, fill=_DIM, font_size=12)
        near = f"foreseen {psnr(strip.foreseen, strip.future)}, copy {psnr(strip.present, strip.future)}"
        draw.text((width - _GAP, top + 2), near, fill=_DIM, font_size=12, anchor="ra")
        for column, name in enumerate(columns):
            tile = _tile(getattr(strip, name))
            sheet.paste(tile, (_GAP + column * (_TILE + _GAP), top + _LINE))
    return np.asarray(sheet)


def _tile(picture: np.ndarray) -> Image.Image:
    small = picture.shape[0] <= _TILE
    how = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    return Image.fromarray(np.ascontiguousarray(picture)).resize((_TILE, _TILE), how)

"""Pictures of a dataset: what a model sees at a few moments, and its numbers as recorded and as they are learned."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vla_mot.evaluate.picture import ACCENT, INK, MUTED, SOFT, enlarged

_SHADE, _EMPTY, _OUTSIDE = "#eaf1fd", "#f1f3f5", "#d9730d"
_DPI = 110
_CELL, _ABSENT, _HEAD, _MARGIN = 1.75, 0.42, 0.45, 2.4  # inches: a picture, an empty slot, titles, words
_MOST = 64  # dimensions that are drawn


@dataclass(frozen=True)
class Strip:
    """One camera at one moment.

    moment: of which moment, e.g. `episode 0, frame 31`. view: the camera's words. pictures: `(3, H, W, 3)` uint8,
    frames t − m, t and t + m; None for an absent slot. real: which of the three lie inside the episode.
    """

    moment: str
    view: str
    pictures: np.ndarray | None
    real: tuple[bool, bool, bool] = (True, True, True)


@dataclass(frozen=True)
class Curve:
    """One dimension over an episode.

    name, unit: of the dimension. action, state: `(T,)` as recorded; None where there is none. chunk: `(l,)` normalized,
    as learned; None for a state, of which `point` is what the model reads at the chunk's start. delta: whether the
    state was subtracted.
    """

    name: str
    unit: str
    action: np.ndarray | None
    state: np.ndarray | None
    chunk: np.ndarray | None
    point: float | None
    delta: bool


def draw_strips(strips: Sequence[Strip], offset: int, path: Path) -> Path:
    """Draw every camera of every moment as a row t − m, t, t + m; returns the path. offset: m in frames."""
    aspect = next((s.pictures.shape[1] / s.pictures.shape[2] for s in strips if s.pictures is not None), 1.0)
    heights = [_ABSENT if strip.pictures is None else _CELL * aspect + 0.08 for strip in strips]
    height, width = sum(heights) + _HEAD, 3 * _CELL + _MARGIN + 0.1
    with matplotlib.rc_context({"font.size": 9, "font.family": "sans-serif"}):
        figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
        grid = figure.add_gridspec(
            len(strips), 3, height_ratios=heights, left=_MARGIN / width, right=0.985, top=1 - _HEAD / height,
            bottom=0.05 / height, wspace=0.05, hspace=0.06,
        )  # fmt: skip
        for row, strip in enumerate(strips):
            axes = [figure.add_subplot(grid[row, column]) for column in range(3)]
            is_first = row == 0 or strips[row - 1].moment != strip.moment
            _draw_strip(axes, strip, offset if row == 0 else None, is_first)
        figure.savefig(path, metadata={"Software": None})
    return path


def _draw_strip(axes: Sequence[Axes], strip: Strip, offset: int | None, is_first: bool) -> None:
    titles = (f"t − {offset}\nhistory", "t\npresent", f"t + {offset}\nforesight")
    missing = ("before the episode:\nits first frame", "", "past the episode:\nno target")
    for column, axis in enumerate(axes):
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set(color=SOFT, linewidth=0.8)
        if offset is not None:
            axis.set_title(titles[column], color=INK, fontsize=9, pad=5)
        if strip.pictures is None:
            axis.set_facecolor(_EMPTY)
            axis.text(0.5, 0.5, "absent", color=MUTED, ha="center", va="center", transform=axis.transAxes)
            continue
        axis.imshow(enlarged(strip.pictures[column]), interpolation="antialiased")
        if not strip.real[column]:
            axis.spines[:].set(color=_OUTSIDE, linewidth=2)
            axis.text(
                0.5, 0.04, missing[column], color="white", fontsize=7.5, ha="center", va="bottom",
                transform=axis.transAxes, bbox={"facecolor": _OUTSIDE, "edgecolor": "none", "pad": 2},
            )  # fmt: skip
    axes[0].text(
        -0.06, 0.5, _wrapped(strip.view), color=MUTED, ha="right", va="center", transform=axes[0].transAxes
    )
    if is_first:
        axes[0].text(
            -0.06,
            0.98,
            strip.moment,
            color=INK,
            fontweight="bold",
            ha="right",
            va="top",
            transform=axes[0].transAxes,
        )


def draw_curves(curves: Sequence[Curve], frame: int, fps: float, path: Path) -> Path:
    """Draw every dimension twice: as recorded over an episode, and normalized as the chunk at `frame`.

    frame: where the chunk starts, counted from the episode's start. Returns the path.
    """
    drawn = curves[:_MOST]
    rows = -(-len(drawn) // 2)
    with matplotlib.rc_context({"font.size": 7.5, "font.family": "sans-serif"}):
        height = 1.15 * rows + 0.75
        figure = Figure(figsize=(13, height), dpi=_DPI, facecolor="white")
        grid = figure.add_gridspec(
            rows, 4, left=0.045, right=0.99, top=1 - 0.55 / height, bottom=0.35 / height, wspace=0.2, hspace=0.75,
            width_ratios=(1.7, 1, 1.7, 1),
        )  # fmt: skip
        for number, curve in enumerate(drawn):
            row, half = number % rows, number // rows
            _draw_raw(figure.add_subplot(grid[row, 2 * half]), curve, frame, fps)
            _draw_learned(figure.add_subplot(grid[row, 2 * half + 1]), curve, frame, fps)
        figure.text(0.045, 1 - 0.16 / height, _legend(curves), color=MUTED, fontsize=8, va="top")
        figure.savefig(path, metadata={"Software": None})
    return path


def _legend(curves: Sequence[Curve]) -> str:
    more = f"  ·  {len(curves) - _MOST} more dimensions are not drawn" if len(curves) > _MOST else ""
    return (
        "Wide: as recorded; blue the action, grey the state, in seconds; shaded the chunk.  ·  Narrow: the same chunk "
        f"normalized, as the model learns it; a dot is the state it reads.{more}"
    )


def _draw_raw(axis: Axes, curve: Curve, frame: int, fps: float) -> None:
    _tidy(axis)
    if curve.state is not None:
        axis.plot(np.arange(len(curve.state)) / fps, curve.state, color=SOFT if curve.action is not None else MUTED,
                  linewidth=1.6)  # fmt: skip
    if curve.action is not None:
        axis.plot(np.arange(len(curve.action)) / fps, curve.action, color=ACCENT, linewidth=1.0)
    if curve.chunk is not None:
        axis.axvspan(frame / fps, (frame + max(1, len(curve.chunk))) / fps, color=_SHADE, zorder=0)
    else:
        axis.axvline(frame / fps, color=_SHADE, linewidth=2, zorder=0)
    kind = "state" if curve.action is None else "action, delta" if curve.delta else "action, absolute"
    unit = "" if curve.unit == "unknown" else f" [{curve.unit}]"
    axis.set_title(f"{curve.name}{unit}   ", loc="left", color=INK, fontsize=8, pad=3)
    axis.set_title(kind, loc="right", color=MUTED, fontsize=7, pad=3)


def _draw_learned(axis: Axes, curve: Curve, frame: int, fps: float) -> None:
    _tidy(axis)
    axis.axhspan(-1, 1, color=_EMPTY, zorder=0)
    if curve.chunk is not None:
        axis.plot((frame + np.arange(len(curve.chunk))) / fps, curve.chunk, color=ACCENT, linewidth=1.2)
    elif curve.point is not None:
        axis.set_xticks([])
        axis.plot([frame / fps], [curve.point], "o", color=MUTED, markersize=4)
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, -1.5), max(high, 1.5))


def _tidy(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set(color=SOFT)
    axis.tick_params(colors=MUTED, length=2, pad=2)
    axis.margins(x=0.01)
    axis.locator_params(axis="y", nbins=3)
    axis.locator_params(axis="x", nbins=5)


def _wrapped(text: str, width: int = 26) -> str:
    """Break each line after dots, where it is too long, and after underscores where its parts still are."""
    return "\n".join(piece for line in text.split("\n") for piece in _pieces(line, width, "._"))


def _pieces(line: str, width: int, marks: str) -> list[str]:
    if len(line) <= width or not marks:
        return [line]
    pieces = [""]
    for part in line.replace(marks[0], f"{marks[0]}\0").split("\0"):
        if pieces[-1] and len(pieces[-1]) + len(part) > width:
            pieces.append("")
        pieces[-1] += part
    return [piece for long in pieces for piece in _pieces(long, width, marks[1:])]

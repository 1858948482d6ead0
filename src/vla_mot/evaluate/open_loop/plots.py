"""Curves of an open-loop evaluation as PNG: chunks over episodes, and errors over the horizon.

Legend: `L` chunk steps, `T` frames of an episode.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vla_mot.evaluate.open_loop.errors import ActionErrors, Group
from vla_mot.evaluate.open_loop.traces import Trace
from vla_mot.evaluate.picture import ACCENT, INK, MUTED, SOFT
from vla_mot.robots.dimensions import ActionDimension

_DPI = 110
_MOST = 64  # dimensions that are drawn
_WIDTH, _ROW, _HEAD, _FOOT = 10.4, 1.45, 0.45, 0.5  # inches
_HELD = "#d9730d"


def draw_chunks(trace: Trace, dimensions: Sequence[ActionDimension], fps: float, path: Path) -> Path:
    """Draw every dimension of an episode: recorded, and every predicted chunk over it. Returns the path."""
    drawn = dimensions[:_MOST]
    columns = 2 if len(drawn) > 1 else 1
    rows = -(-len(drawn) // columns)
    with _figure(rows * _ROW) as figure:
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True)
        for place, axis in enumerate(axes.flat):
            if place >= len(drawn):
                axis.set_visible(False)
                continue
            _draw_chunks(axis, trace, place, fps)
            _name(axis, f"{drawn[place].name} ({drawn[place].unit})")
            if place >= len(drawn) - columns:
                axis.tick_params(labelbottom=True)
                axis.set_xlabel("seconds", color=MUTED)
        more = len(dimensions) - len(drawn)
        note = f"; {more} more dimensions are not drawn" if more > 0 else ""
        marks = (
            Line2D([], [], color=INK, linewidth=1.6, label="recorded"),
            Line2D(
                [],
                [],
                color=ACCENT,
                linewidth=1.3,
                marker="o",
                markersize=3.5,
                label=f"predicted, from each dot{note}",
            ),
            Line2D([], [], color=_HELD, linewidth=1, linestyle=":", label="held still"),
        )
        _legend(figure, marks)
        figure.savefig(path, metadata={"Software": None})
    return path


def _draw_chunks(axis: Axes, trace: Trace, place: int, fps: float) -> None:
    times = np.arange(len(trace.actions)) / fps
    axis.plot(times, trace.actions[:, place], color=INK, linewidth=1.6)
    for chunk in trace.chunks:
        where = (chunk.frame + np.arange(len(chunk.predicted))) / fps
        axis.plot(where, chunk.held[:, place], color=_HELD, linewidth=1, linestyle=":")
        axis.plot(where, chunk.predicted[:, place], color=ACCENT, linewidth=1.3)
        axis.plot(where[:1], chunk.predicted[:1, place], "o", color=ACCENT, markersize=3.5)


def draw_horizon(errors: ActionErrors, groups: Sequence[Group], fps: float | None, path: Path) -> Path:
    """Draw the mean absolute error of groups over the steps of a chunk, predicted and held still. Returns the path.

    fps: frames per second, None where datasets differ: then steps are counted.
    """
    columns = len(groups) if len(groups) <= 4 else 3
    rows = -(-len(groups) // columns)
    with _figure(rows * 2.0) as figure:
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True)
        for place, axis in enumerate(axes.flat):
            if place >= len(groups):
                axis.set_visible(False)
                continue
            means = errors.horizon(groups[place])[:, 0]  # (M, L)
            where = np.arange(means.shape[1]) / (fps or 1)
            style = {"marker": "o", "markersize": 2.5} if means.shape[1] <= 20 else {}
            axis.plot(where, means[1], color=_HELD, linewidth=1.1, linestyle=":", **style)
            axis.plot(where, means[0], color=ACCENT, linewidth=1.5, **style)
            axis.set_ylim(bottom=0)
            _name(axis, groups[place].label)
            axis.tick_params(labelbottom=True)
            axis.set_xlabel("seconds ahead" if fps else "steps ahead", color=MUTED)
        _legend(
            figure,
            (
                Line2D([], [], color=ACCENT, linewidth=1.5, label="predicted"),
                Line2D([], [], color=_HELD, linewidth=1.1, linestyle=":", label="held still"),
            ),
        )
        figure.savefig(path, metadata={"Software": None})
    return path


@contextmanager
def _figure(height: float) -> Iterator[Figure]:
    with matplotlib.rc_context({"font.size": 8, "font.family": "sans-serif"}):
        full = height + _HEAD + _FOOT
        figure = Figure(figsize=(_WIDTH, full), dpi=_DPI, facecolor="white")
        figure.subplots_adjust(
            left=0.055,
            right=0.99,
            top=1 - (_HEAD + 0.15) / full,
            bottom=_FOOT / full,
            hspace=0.55,
            wspace=0.2,
        )
        yield figure


def _legend(figure: Figure, marks: Sequence[Line2D]) -> None:
    figure.legend(
        handles=list(marks), loc="upper left", ncols=len(marks), frameon=False, labelcolor=INK,
        bbox_to_anchor=(0.045, 1.0),
    )  # fmt: skip


def _name(axis: Axes, text: str) -> None:
    axis.set_title(text, loc="left", color=INK, fontsize=8.5, pad=4)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set(color=SOFT)
    axis.tick_params(colors=MUTED, length=2, pad=2)
    axis.margins(x=0.01)
    axis.locator_params(axis="y", nbins=4)

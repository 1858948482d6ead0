"""The picture of the README: what was seen, what was foreseen, what came, and how often it succeeded."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vla_mot.evaluate.foresight_report import ForesightExample
from vla_mot.evaluate.results import Arm, Evaluation
from vla_mot.evaluate.wording import percent, sentence

INK, MUTED, ACCENT, SOFT, _TRACK = "#1b1f24", "#68707a", "#1f6feb", "#b7c3d0", "#f1f3f5"
_WIDTH, _HEIGHT = 12.0, 4.3  # inches
_LEFT, _RIGHT = -0.1, 1.16  # of the bars' axes, in success rates


def draw_picture(evaluation: Evaluation, path: Path, *, episode: int | None = None) -> Path:
    """Draw past, present, foreseen and true future of both cameras beside the success bars, as a PNG.

    episode: which of the foresight examples to show; the first by default. Returns the path, whose folder is made.
    Raises ValueError when there is no such example.
    """
    found = evaluation.foresight.examples if evaluation.foresight else ()
    chosen = [
        example for example in found if example.episode == (found[0].episode if episode is None else episode)
    ]
    if not chosen:
        known = ", ".join(str(number) for number in dict.fromkeys(example.episode for example in found))
        raise ValueError(f"no foresight pictures of episode {episode}; there are: {known or 'none'}.")
    offset = evaluation.foresight.offset_frames if evaluation.foresight else 0
    with matplotlib.rc_context({"font.size": 10, "font.family": "sans-serif"}):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=140, facecolor="white")
        grid = figure.add_gridspec(
            len(chosen), 5, width_ratios=(1, 1, 1, 1, 2.05), left=0.055, right=0.985, top=0.9, bottom=0.04,
            wspace=0.06, hspace=0.06,
        )  # fmt: skip
        for row, example in enumerate(chosen):
            axes = [figure.add_subplot(grid[row, column]) for column in range(4)]
            _draw_strip(axes, example, offset if row == 0 else None)
        _draw_bars(figure.add_subplot(grid[:, 4]), evaluation.arms)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})
    return path


def _draw_strip(axes: Sequence[Axes], example: ForesightExample, offset: int | None) -> None:
    """One camera's four pictures; titles only where `offset` is given."""
    titles = (f"past, t − {offset}", "present, t", f"foreseen, t + {offset}", f"true future, t + {offset}")
    pictures = (example.past, example.present, example.foreseen, example.future)
    for axis, title, array in zip(axes, titles, pictures, strict=True):
        axis.imshow(enlarged(array), interpolation="antialiased")
        axis.set_xticks([])
        axis.set_yticks([])
        foreseen = title.startswith("foreseen")
        axis.spines[:].set(color=ACCENT if foreseen else "none", linewidth=2.5)
        if offset is not None:
            weight = "bold" if foreseen else "normal"
            axis.set_title(title, color=ACCENT if foreseen else INK, fontsize=10.5, fontweight=weight, pad=6)
    axes[0].set_ylabel(f"{example.view} camera", color=MUTED, labelpad=6)


def _draw_bars(axes: Axes, arms: Sequence[Arm]) -> None:
    places = np.arange(len(arms))[::-1]
    axes.barh(places - 0.14, 1.0, height=0.3, color=_TRACK)
    for number, (place, arm) in enumerate(zip(places - 0.14, arms, strict=True)):
        rate = arm.success
        axes.barh(place, rate.value, height=0.3, color=ACCENT if number == 0 else SOFT)
        axes.plot((rate.low, rate.high), (place, place), color=INK, linewidth=1.3, solid_capstyle="butt")
        axes.plot((rate.low, rate.high), (place, place), "|", color=INK, markersize=6, markeredgewidth=1.3)
        bold = "bold" if number == 0 else "normal"
        axes.text(0, place + 0.24, sentence(arm.label), color=INK, va="bottom", fontsize=9.5, fontweight=bold)
        axes.text(1.03, place, percent(rate.value), color=INK, va="center", fontsize=10.5, fontweight=bold)
    episodes = len(arms[0].episodes) if arms else 0
    axes.set_title(
        f"success over {episodes} episodes, 95 % intervals",
        color=INK,
        loc="left",
        x=-_LEFT / (_RIGHT - _LEFT),
        fontsize=10.5,
        pad=6,
    )
    axes.set_xlim(_LEFT, _RIGHT)
    axes.set_ylim(-0.55, len(arms) - 0.25)
    axes.axis("off")


def enlarged(array: np.ndarray) -> np.ndarray:
    """Whole-number enlargement to at least 192 pixels, so that pixels stay square when the figure is drawn."""
    times = max(1, -(-192 // array.shape[0]))
    return array.repeat(times, axis=0).repeat(times, axis=1)

"""Curves of a run's log as inline SVG that follows the page's colours, light or dark."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, PercentFormatter, ScalarFormatter

Records = Sequence[Mapping[str, Any]]
"""Of a run's log: `{"step", "kind": "train" | "validation", …numbers}` each."""

LOSSES = {"action_loss": "action loss", "foresight_loss": "foresight loss"}
SERIES = 8
"""Lines that can be told apart by colour."""

# Colours that stand for the page's own; matplotlib writes them, `_follow_page` replaces them.
_INK, _MUTED, _GRID, _ACCENT, _SOFT = "#010101", "#020202", "#030303", "#040404", "#050505"
_SERIES = tuple(f"#0606{number:02x}" for number in range(SERIES))
_PAGE = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--grid)",
    _ACCENT: "var(--accent)",
    _SOFT: "var(--soft)",
    **{colour: f"var(--s{number})" for number, colour in enumerate(_SERIES)},
}
_WIDTH, _HEIGHT = 10.4, 3.2  # inches, of a row of panels


@dataclass(frozen=True)
class Panel:
    """One pair of axes. lines: label → key of the log, at most `SERIES`. kind: whose records.

    scale: `log` where all values are positive; `linear` from zero; `percent` of shares, from zero.
    """

    title: str
    lines: Mapping[str, str]
    kind: Literal["train", "validation"] = "train"
    scale: Literal["log", "linear", "percent"] = "log"


def learning_curves(records: Records) -> str:
    """Draw both losses over steps, training and validation; an empty string when nothing was logged."""
    shown = [name for name in LOSSES if curve(records, "train", name)[0]]
    if not shown:
        return ""
    with _style_of_page():
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            _draw_loss(axes, records, name)
        return _svg(figure)


def panel_curves(records: Records, panels: Sequence[Panel], columns: int = 2) -> str:
    """Draw panels in rows of so many; those without a finite value are left out. Empty when none is left."""
    shown = [panel for panel in panels if any(curve(records, panel.kind, k)[0] for k in panel.lines.values())]
    if not shown:
        return ""
    rows = -(-len(shown) // columns)
    with _style_of_page():
        size = (_WIDTH, rows * _HEIGHT * (2 / columns) ** 0.5)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08))
        places = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, panel in zip(places, shown, strict=False):
            _draw_panel(axes, records, panel)
        for unused in places[len(shown) :]:
            unused.axis("off")
        return _svg(figure)


def curve(records: Records, kind: str, name: str) -> tuple[list[float], list[float]]:
    """Steps and values; records without a finite value of that name are left out."""
    found = [
        (record["step"], record[name]) for record in records if record["kind"] == kind and name in record
    ]
    kept = [(step, value) for step, value in found if isinstance(value, int | float) and math.isfinite(value)]
    return [float(step) for step, _ in kept], [float(value) for _, value in kept]


# ---- drawing ------------------------------------------------------------------------------------------------


def _draw_loss(axes: Axes, records: Records, name: str) -> None:
    steps, values = curve(records, "train", name)
    axes.plot(steps, values, color=_SOFT, linewidth=0.8, alpha=0.55)
    axes.plot(steps, _smooth(values), color=_SOFT, linewidth=1.8, label="training")
    seen, scores = curve(records, "validation", name)
    if seen:
        axes.plot(seen, scores, color=_ACCENT, linewidth=2, marker="o", markersize=3.5, label="validation")
        _tell_last(axes, seen, scores, _ACCENT)
    axes.set_title(LOSSES[name], loc="left", color=_INK, fontsize=11)
    axes.set_xlabel("optimizer steps", color=_MUTED)
    _style(axes, values + scores, "log")
    axes.legend(frameon=False, labelcolor=_MUTED, loc="upper right")


def _draw_panel(axes: Axes, records: Records, panel: Panel) -> None:
    drawn: list[float] = []
    lines = _distinct(records, panel)
    for (steps, values), (label, colour) in lines.items():
        drawn += values
        marker = "o" if panel.kind == "validation" else ""
        smooth = values if panel.kind == "validation" else _smooth(values)
        axes.plot(steps, smooth, color=colour, linewidth=1.6, label=label, marker=marker, markersize=3)
        if len(lines) == 1:
            _tell_last(axes, steps, smooth, colour, panel.scale)
    axes.set_title(panel.title, loc="left", color=_INK, fontsize=11)
    _style(axes, drawn, panel.scale)
    if any(label for label, _ in lines.values()):
        axes.legend(frameon=False, labelcolor=_MUTED, fontsize=8.5, loc="best")


_Line = tuple[tuple[float, ...], tuple[float, ...]]


def _distinct(records: Records, panel: Panel) -> dict[_Line, tuple[str, str]]:
    """Steps and values → label and colour. Lines that would hide one another are one, with all of their labels."""
    found: dict[_Line, tuple[str, str]] = {}
    for (label, key), colour in zip(panel.lines.items(), _SERIES, strict=False):
        steps, values = map(tuple, curve(records, panel.kind, key))
        if not steps:
            continue
        before = found.get((steps, values))
        found[steps, values] = (f"{before[0]}, {label}", before[1]) if before else (label, colour)
    return found


def _tell_last(
    axes: Axes, steps: Sequence[float], values: Sequence[float], colour: str, scale: str = "log"
) -> None:
    told = f"{100 * values[-1]:.0f}\u00a0%" if scale == "percent" else f"{values[-1]:.3g}"
    axes.annotate(
        told, (steps[-1], values[-1]), (6, 0), textcoords="offset points", va="center", color=colour
    )


def _style(axes: Axes, values: Sequence[float], scale: str) -> None:
    if scale == "log" and min(values) > 0:
        _logarithmic(axes, values)
    elif scale == "percent":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol="\u00a0%"))
    else:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelcolor=_MUTED)
    axes.spines[:].set_visible(False)
    axes.margins(x=0.02)
    if scale != "log":
        axes.set_ylim(bottom=0, top=1.15 * max(values) or 1.0)


def _logarithmic(axes: Axes, values: Sequence[float]) -> None:
    axes.set_yscale("log")
    decades = math.log10(max(values) / min(values))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)))
    plain = ScalarFormatter()
    plain.set_scientific(False)
    axes.yaxis.set_major_formatter(plain if min(values) > 1e-3 else EngFormatter(sep=""))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _smooth(values: Sequence[float]) -> list[float]:
    """A centred mean over about a thirtieth of the curve; at its ends, over what there is of it."""
    half = len(values) // 60
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _style_of_page() -> Any:
    return matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vla_mot", "font.size": 10})


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _follow_page(file.getvalue())


def _follow_page(svg: str) -> str:
    """Cut an SVG file down to what stands inside a page: no prologue, no addresses, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(xmlns(:\w+)?|width|height)="[^"]*"', "", svg[: svg.index(">")]) + svg[svg.index(">") :]
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for colour, variable in _PAGE.items():
        svg = svg.replace(colour, variable)
    return svg

"""Learning curves as an inline SVG that follows the page's colours, light or dark."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, ScalarFormatter

LOSSES = {"action_loss": "action loss", "foresight_loss": "foresight loss"}

# Colours that stand for the page's own; matplotlib writes them, `_follow_page` replaces them.
_INK, _MUTED, _GRID, _ACCENT, _SOFT = "#010101", "#020202", "#030303", "#040404", "#050505"
_PAGE = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--grid)",
    _ACCENT: "var(--accent)",
    _SOFT: "var(--soft)",
}


def learning_curves(records: Sequence[Mapping[str, Any]]) -> str:
    """Draw both losses over steps, training and validation; an empty string when nothing was logged.

    records: `{"step", "kind": "train" | "validation", "action_loss", "foresight_loss", …}`.
    """
    shown = [name for name in LOSSES if _curve(records, "train", name)[0]]
    if not shown:
        return ""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vla_mot", "font.size": 10}):
        figure = Figure(figsize=(10.4, 3.2), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            _draw(axes, records, name)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _follow_page(file.getvalue())


def _draw(axes: Axes, records: Sequence[Mapping[str, Any]], name: str) -> None:
    steps, values = _curve(records, "train", name)
    axes.plot(steps, values, color=_SOFT, linewidth=0.8, alpha=0.55)
    axes.plot(steps, _smooth(values), color=_SOFT, linewidth=1.8, label="training")
    seen, scores = _curve(records, "validation", name)
    if seen:
        axes.plot(seen, scores, color=_ACCENT, linewidth=2, marker="o", markersize=3.5, label="validation")
        axes.annotate(
            f"{scores[-1]:.3g}",
            (seen[-1], scores[-1]),
            (6, 0),
            textcoords="offset points",
            va="center",
            color=_ACCENT,
        )
    axes.set_title(LOSSES[name], loc="left", color=_INK, fontsize=11)
    axes.set_xlabel("optimizer steps", color=_MUTED)
    _style(axes, values + scores)


def _style(axes: Axes, values: Sequence[float]) -> None:
    if min(values) > 0:
        axes.set_yscale("log")
        decades = math.log10(max(values) / min(values))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)))
        plain = ScalarFormatter()
        plain.set_scientific(False)
        axes.yaxis.set_major_formatter(plain)
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelcolor=_MUTED)
    axes.spines[:].set_visible(False)
    axes.margins(x=0.02)
    axes.legend(frameon=False, labelcolor=_MUTED, loc="upper right")


def _curve(records: Sequence[Mapping[str, Any]], kind: str, name: str) -> tuple[list[float], list[float]]:
    """Steps and values; records without a finite value of that name are left out."""
    found = [
        (record["step"], record[name]) for record in records if record["kind"] == kind and name in record
    ]
    kept = [(step, value) for step, value in found if isinstance(value, int | float) and math.isfinite(value)]
    return [float(step) for step, _ in kept], [float(value) for _, value in kept]


def _smooth(values: Sequence[float]) -> list[float]:
    """A centred mean over about a thirtieth of the curve; at its ends, over what there is of it."""
    half = len(values) // 60
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _follow_page(svg: str) -> str:
    """Cut an SVG file down to what stands inside a page: no prologue, no addresses, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(xmlns(:\w+)?|width|height)="[^"]*"', "", svg[: svg.index(">")]) + svg[svg.index(">") :]
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for colour, variable in _PAGE.items():
        svg = svg.replace(colour, variable)
    return svg

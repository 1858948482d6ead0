"""Cost against the number of cameras, denoising steps, actions of a chunk and robots: one at a time, and a picture."""

import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from common import head, row

from acting.scene import Setting, scene
from acting.timing import race
from acting.variants import Variant, around
from vla_mot.model.model import VlaMotModel

AXES: dict[str, tuple[int, ...]] = {
    "views": (1, 2, 3),
    "steps": (1, 2, 5, 10, 20),
    "chunk": (10, 25, 50, 100),
    "batch": (1, 2, 4, 8),
}

Curves = Mapping[str, Mapping[int, Mapping[str, float]]]
"""What is changed → its value → variant → median seconds of a call."""


def curves(
    model: VlaMotModel, variants: Mapping[str, Variant], base: Setting, repeats: int, warmup: int
) -> Curves:
    """Measure, and print every point as it comes: all variants in turns, everything but one number as in `base`."""
    known: dict[Setting, dict[str, float]] = {}
    found: dict[str, dict[int, dict[str, float]]] = {}
    print()
    head("changed", "to", *(f"{name} ms" for name in variants))
    for axis, values in AXES.items():
        for value in values:
            setting = replace(base, **{axis: value})
            if setting not in known:
                known[setting] = _medians(model, variants, setting, repeats, warmup)
            found.setdefault(axis, {})[value] = known[setting]
            row(axis, value, *(f"{1e3 * took:.1f}" for took in known[setting].values()))
    return found


def _medians(
    model: VlaMotModel, variants: Mapping[str, Variant], setting: Setting, repeats: int, warmup: int
) -> dict[str, float]:
    policy, request = scene(model, setting)
    seconds = race(around(variants, policy), request, repeats, warmup)
    return {name: statistics.median(times) for name, times in seconds.items()}


def draw(found: Curves, path: Path, title: str) -> None:
    """A panel per axis, a line per variant; says where the picture lies, or why there is none."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("\nNo picture was drawn: matplotlib is not installed.")
        return
    figure = Figure(figsize=(13, 3.4), dpi=130, facecolor="white", layout="constrained")
    figure.suptitle(title, fontsize=9)
    for axes, (axis, points) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        for name in next(iter(points.values())):
            axes.plot(list(points), [1e3 * told[name] for told in points.values()], marker="o", label=name)
        axes.set(xlabel=axis, xticks=list(points), ylim=(0, None))
    figure.axes[0].set_ylabel("ms / call")
    figure.axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    print(f"\ndrawn: {path}")

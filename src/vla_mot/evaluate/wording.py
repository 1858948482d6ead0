"""Numbers as people read them."""

import math

import numpy as np

from vla_mot.evaluate.intervals import Interval, PairedDifference


def percent(share: float) -> str:
    """`0.826` → `83 %`."""
    return f"{100 * share:.0f}\u00a0%"


def percents(interval: Interval) -> str:
    """The ends of an interval: `74 … 89 %`."""
    return f"{100 * interval.low:.0f} … {100 * interval.high:.0f}\u00a0%"


def ends(interval: Interval, form: str = ".3g") -> str:
    """The ends of an interval: `0.74 … 0.89`, or `–` where nothing is known of them."""
    return "–" if math.isnan(interval.low) else f"{interval.low:{form}} … {interval.high:{form}}"


def points(share: float) -> str:
    """A difference of shares: `−49 pts`."""
    return f"{100 * share:+.0f} pts".replace("-", "−")


def difference(paired: PairedDifference | None) -> str:
    """A paired difference with its interval: `+49 pts (+37 … +61)`; empty without one."""
    if paired is None:
        return ""
    low, high = (
        f"{100 * end:+.0f}".replace("-", "−") for end in (paired.difference.low, paired.difference.high)
    )
    return f"{points(paired.difference.value)} ({low} … {high})"


def duration(seconds: float) -> str:
    """`8 min 15 s`, `2 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def psnr(array: np.ndarray, truth: np.ndarray) -> str:
    """Peak signal-to-noise ratio of two uint8 pictures: `21.9 dB`, or `exact`."""
    error = float(np.square((array.astype(np.float64) - truth) / 255).mean())
    return "exact" if error == 0 else f"{-10 * np.log10(error):.1f} dB"


def counted(count: int, thing: str) -> str:
    """`1 episode`, `1,200 episodes`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]

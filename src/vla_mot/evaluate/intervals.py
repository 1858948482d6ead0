"""Intervals: how far a number measured on few episodes can be trusted.

Legend: `E` episodes, `R` bootstrap resamples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000
_ROUNDING = 1e-12
"""Clusters that differ by no more are the same number, reached in two ways."""


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its confidence interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Plain values for JSON, which knows neither NaN nor infinity: both become None."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {name: number if math.isfinite(number) else None for name, number in numbers.items()}

    @classmethod
    def from_dict(cls, spec: Mapping[str, float | None]) -> "Interval":
        """The inverse of `to_dict`; None becomes NaN."""
        value, low, high = (
            math.nan if spec[name] is None else spec[name] for name in ("value", "low", "high")
        )
        return cls(value, low, high)  # type: ignore[arg-type]


@dataclass(frozen=True)
class PairedDifference:
    """Success of one controller minus that of another in the same episodes.

    difference: of the two rates, with a bootstrap interval over episodes; where all episodes differ alike, so that its
        resamples would too, with Newcombe's.
    only_first, only_second: episodes in which only that one succeeded.
    p_value: two-sided exact McNemar test of "neither is better".
    """

    difference: Interval
    only_first: int
    only_second: int
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "difference": self.difference.to_dict(),
            "only_first": self.only_first,
            "only_second": self.only_second,
            "p_value": self.p_value,
        }


def wilson(successes: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a success rate (Wilson 1927); [0, 1] without any trial, value NaN.

    Raises ValueError unless 0 ≤ successes ≤ trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must lie in 0 … {trials} trials, got {successes}.")
    if trials == 0:
        return Interval(math.nan, 0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, shrink = successes / trials, 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / trials + (z / (2 * trials)) ** 2)
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Interval(rate, low, high)


def paired_difference(
    first: Sequence[bool], second: Sequence[bool], confidence: float = CONFIDENCE, seed: int = 0
) -> PairedDifference:
    """Compare two controllers by their successes in the same E episodes, in the same order.

    Raises ValueError for different lengths or no episode.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"paired episodes are needed, got {len(first)} and {len(second)}.")
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    gain = a.astype(np.float64) - b.astype(np.float64)
    both, only_first, only_second = (int(which.sum()) for which in (a & b, a & ~b, b & ~a))
    if np.ptp(gain) > 0:
        means = gain[resampled(len(gain), seed=seed)].mean(axis=1)
        difference = percentile_interval(float(gain.mean()), means, confidence)
    else:
        neither = len(gain) - both - only_first - only_second
        difference = newcombe(both, only_first, only_second, neither, confidence)
    return PairedDifference(difference, only_first, only_second, _mcnemar(only_first, only_second))


def newcombe(
    both: int, only_first: int, only_second: int, neither: int, confidence: float = CONFIDENCE
) -> Interval:
    """Difference of two rates of the same trials, counted by who succeeded; at least one trial.

    Method 10 of Newcombe, "Improved confidence intervals for the difference between binomial proportions based on
    paired data" (1998): Wilson's intervals of both rates, squared and added, less what their correlation φ saves.
    """
    trials = both + only_first + only_second + neither
    first, second = (wilson(both + only, trials, confidence) for only in (only_first, only_second))
    phi = _correlation(both, only_first, only_second, neither)

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    value = (only_first - only_second) / trials
    low = value - reach(first.value - first.low, second.high - second.value)
    high = value + reach(first.high - first.value, second.value - second.low)
    return Interval(value, low, high)


def _correlation(both: int, only_first: int, only_second: int, neither: int) -> float:
    """φ with Newcombe's correction for continuity where it is positive; 0 where a rate is 0 or 1."""
    sums = (both + only_first, only_second + neither, both + only_second, only_first + neither)
    product = float(both * neither - only_first * only_second)
    if product > 0:
        product = max(0.0, product - sum(sums[:2]) / 2)
    return product / math.sqrt(math.prod(sums)) if all(sums) else 0.0


def clustered(
    values: Sequence[float],
    confidence: float = CONFIDENCE,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """Mean of one number per cluster with Student's t interval: how far the mean of other clusters would be.

    A cluster is what is drawn anew as a whole, such as a training seed with all the episodes that its policy drove. One
    cluster alone gives nothing to judge by, nor do several without any spread, such as three seeds that always succeed:
    the ends are NaN. within: what is possible, where the ends are cut. Raises ValueError without any cluster.
    """
    if not len(values):
        raise ValueError("at least one cluster is needed, got none.")
    mean, count = float(np.mean(values)), len(values)
    if np.ptp(values) <= _ROUNDING:
        return Interval(mean, math.nan, math.nan)
    half = (
        student_quantile(0.5 + confidence / 2, count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
    )
    low, high = np.clip([mean - half, mean + half], *within).tolist()
    return Interval(mean, low, high)


def clustered_difference(
    first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]], confidence: float = CONFIDENCE
) -> Interval:
    """Success of one way of training minus that of another, with training seeds as clusters (`clustered`).

    first, second: per training seed, its policy's successes in the same episodes, in the same order, so that neither
    scenes nor seeds differ between the two. Where every seed has episodes of its own, the interval speaks of other
    scenes as well. Raises ValueError for other seeds or episodes, or none.
    """
    shapes = [[len(episodes) for episodes in arm] for arm in (first, second)]
    if shapes[0] != shapes[1] or not all(shapes[0]):
        raise ValueError(
            f"paired seeds and episodes are needed, got episodes per seed {shapes[0]} and {shapes[1]}."
        )
    gains = [float(np.mean(a) - np.mean(b)) for a, b in zip(first, second, strict=True)]
    return clustered(gains, confidence, within=(-1.0, 1.0))


def student_quantile(probability: float, degrees: int) -> float:
    """Quantile in (0.5, 1) of Student's t distribution with so many degrees of freedom, by bisection."""
    low, high = 0.0, 1.0
    while _student_cdf(high, degrees) < probability:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _student_cdf(t: float, degrees: int) -> float:
    """P(T ≤ t) for t ≥ 0: the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan2(t, math.sqrt(degrees))
    odd, square = degrees % 2, math.cos(angle) ** 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for power in range(1 + odd, degrees, 2):
        total += term
        term *= square * power / (power + 1)
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return 0.5 + inside / 2


def resampled(units: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Row numbers `(R, units)` of a bootstrap over units, the same for the same seed."""
    return np.random.default_rng(seed).integers(units, size=(resamples, units))


@lru_cache(maxsize=4)
def episode_weights(episodes: int, seed: int = 0) -> np.ndarray:
    """`(R, E)`: how often each bootstrap resample draws each episode."""
    counted = [np.bincount(draw, minlength=episodes) for draw in resampled(episodes, seed=seed)]
    return np.stack(counted).astype(np.float64)


def over_episodes(value: float, draws: np.ndarray, episodes: int) -> Interval:
    """The interval of a value from its resamples `(R,)`; without ends where there is one episode, which tells none."""
    return (
        percentile_interval(float(value), draws) if episodes > 1 else Interval(float(value), *2 * (math.nan,))
    )


def percentile_interval(value: float, draws: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """The bootstrap's percentile interval of `value` from `(R,)` resampled values; NaN ones are left out."""
    tail = 50 * (1 - confidence)
    kept = draws[~np.isnan(draws)]
    if not len(kept):
        return Interval(value, math.nan, math.nan)
    low, high = np.percentile(kept, [tail, 100 - tail], method="nearest")  # infinities do not mix
    return Interval(value, float(low), float(high))


def _mcnemar(only_first: int, only_second: int) -> float:
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1)) / 2**n
    return min(1.0, 2 * tail)

"""What is printed of calls and their stages."""

import statistics
from collections.abc import Mapping, Sequence

from common import head, row, spread

from acting.timing import PERCENTILES, percentiles

MIB = 2**20
_ORDER = ("preprocess", "vision", "encode", "prefill", "understanding", "foresight", "denoise", "rest")


def show_calls(seconds: Mapping[str, Sequence[float]], peaks: Mapping[str, int]) -> None:
    """Whole calls; ratios are to the first variant, and to the compiled baseline, of the same round."""
    base, *_ = seconds
    bases = [base, *(name for name in ("plain+compiled",) if name in seconds and name != base)]
    print()
    titles = ("peak MiB", f"peak over {base}") if peaks else ()
    over = (f"{name} over it" for name in bases)
    head("variant", *(f"p{share} ms" for share in PERCENTILES), "Hz", *over, *titles)
    for name, times in seconds.items():
        gains = [[first / own for first, own in zip(seconds[to], times, strict=True)] for to in bases]
        weight = (f"{peaks[name] / MIB:.0f}", f"{peaks[name] / peaks[base]:.2f}") if peaks else ()
        rate, shown = f"{1 / statistics.median(times):.1f}", (spread(gain, ".2f") for gain in gains)
        row(name, *(f"{1e3 * took:.1f}" for took in percentiles(times)), rate, *shown, *weight)


def show_stages(seconds: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Every stage of every variant, in milliseconds; a variant without a stage has it in another one."""
    print()
    print(
        "ms, p50 / p90 / p99, with a wait for the device after every stage; prefill: understanding and foresight"
    )
    head("stage", *seconds)
    for stage in _ORDER:
        cells = [_cell(told[stage]) if stage in told else "" for told in seconds.values()]
        if any(cells):
            row(stage, *cells)


def _cell(times: Sequence[float]) -> str:
    return " / ".join(f"{1e3 * took:.1f}" for took in percentiles(times))

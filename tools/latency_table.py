"""Success under simulated latency: how late chunks come, against what is done about it.

    python tools/latency_table.py outputs/demo/policy outputs/latency [episodes=100] [seed=100000] [key=value …]

Drives the demo's robot once per cell with `vla-mot evaluate`, which gets the further words, and prints the table for
docs/real_time.md. What is there is not computed again, so an interrupted table goes on with the same command; another
policy, or other words, are refused in its folder.
"""

from pathlib import Path

from vla_mot.commands import main as command_line
from vla_mot.commands.folders import require_same
from vla_mot.commands.repositories import locate
from vla_mot.commands.scripts import run_script
from vla_mot.evaluate.results import POLICY_HASH, Arm, Evaluation
from vla_mot.hub.manifest import identity
from vla_mot.hub.remote import fetch

DELAYS_MS = (0, 100, 200, 400)
METHODS = {
    "naive": ("chunks=naive",),
    "temporal ensembling": ("chunks=ensemble",),
    "RTC, guided": ("chunks=rtc", "rtc.mode=guided"),
    "RTC, guided, identity": ("chunks=rtc", "rtc.mode=guided", "rtc.jacobian=identity"),
    "RTC, frozen": ("chunks=rtc", "rtc.mode=frozen"),
}


def main(words: list[str]) -> None:
    """Drive every cell, and print the table."""
    checkpoint, output, options = words[0], Path(words[1]), words[2:]
    policy = fetch(locate(checkpoint))
    require_same(output, {"words": options, POLICY_HASH: identity(policy) or str(policy)})
    found = {
        (method, delay): drive(
            checkpoint, output / f"{place}-{delay}ms", [*told, f"delay_ms={delay}", *options]
        )
        for place, (method, told) in enumerate(METHODS.items())
        for delay in DELAYS_MS
    }
    print(table(found))


def drive(checkpoint: str, place: Path, words: list[str]) -> Arm:
    """One cell; ends the script when the command fails."""
    if not (place / "results.json").is_file():
        code = command_line.main(
            ["evaluate", f"checkpoint={checkpoint}", f"output={place}", "videos=0", *words]
        )
        if code:
            raise SystemExit(code)
    return Evaluation.load(place).arms[0]


def table(found: dict[tuple[str, int], Arm]) -> str:
    """Markdown: a row per method, a column per delay, success with its 95 % interval."""
    methods, delays = (list(dict.fromkeys(key[place] for key in found)) for place in (0, 1))
    lines = [f"| | {' | '.join(f'{delay} ms' for delay in delays)} |", f"|---|{'---|' * len(delays)}"]
    for method in methods:
        cells = [cell(found[method, delay]) for delay in delays]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(arm: Arm) -> str:
    """`75 % (66–82)`."""
    rate = arm.success
    return f"{100 * rate.value:.0f} % ({100 * rate.low:.0f}–{100 * rate.high:.0f})"


if __name__ == "__main__":
    run_script(main)

"""What K noise draws that share one prefix cost in training, and what they buy at equal wall-clock time.

cost: seconds of a training step on random samples, relative to the first K. race: models that differ in K alone learn
the demo's task from the same demonstrations for the same seconds, the learning rate falling over these; validation
losses on held-out episodes and noise that never changes. Both in turns, so that a busy machine slows all alike.

    python benchmarks/action_draws.py [parts=cost,race] [repeats=15] [batch=32] [size=demo|tiny|mid] [compiled=true]
        [ranks=2 strategy=ddp|fsdp] [seconds=180] [turn=5] [episodes=150] [seeds=1] [draws=1,2,4,8,16] [folder=…]

size: of the model whose cost is measured; the race is the demo's. compiled: layers by torch.compile. ranks: processes
that share the batch. folder: where the demonstrations are kept; by default a temporary one.
"""

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import describe_machine, head, parse_arguments, row, some_of, spread
from draws.data import Lesson
from draws.racing import Racer
from draws.stepping import Stepper
from draws.team import Team

from vla_mot.train.config import ParallelConfig

MARKS = 4  # times that the race is scored
SCENES = 512  # validation samples


def main() -> None:
    """Measure and print one part after the other."""
    options = parse_arguments(
        sys.argv[1:],
        parts="cost,race",
        repeats=15,
        batch=32,
        size="demo",
        compiled=False,
        ranks=1,
        strategy="ddp",
        seconds=180.0,
        turn=5.0,
        episodes=150,
        seeds=1,
        draws="1,2,4,8,16",
        device="cpu",
        folder="",
    )
    parts = {"cost": cost, "race": race}
    asked = some_of("part", options["parts"], parts)
    print(describe_machine(options["device"]))
    ranks = f"{options['ranks']} ranks, {options['strategy']}" if options["ranks"] > 1 else "one process"
    print(
        f"{ranks}, float32, {'compiled' if options['compiled'] else 'eager'}, batch {options['batch']}",
        flush=True,
    )
    for part in asked:
        parts[part](options, [int(count) for count in options["draws"].split(",")])


def cost(options: Mapping[str, Any], draws: Sequence[int]) -> None:
    """Time one step per number of draws, in turns, and print the table."""
    parallel = ParallelConfig(strategy=options["strategy"], compile=options["compiled"])
    told = (options["size"], options["batch"])
    ranks, device = options["ranks"], options["device"]
    teams = {count: Team(ranks, device, Stepper, *told, count, parallel, device) for count in draws}
    times: dict[int, list[float]] = {count: [] for count in draws}
    for team in teams.values():
        team.wait()
    for _ in range(2 + options["repeats"]):
        for count, team in teams.items():
            times[count].append(team.ask("step"))
    times = {count: values[2:] for count, values in times.items()}  # the first ones compile and allocate
    first = draws[0]
    print(f"\n{teams[first].ask('about')}, AdamW, {options['repeats']} repeats\n")
    head("K", "ms / step", f"cost / K = {first}", "cost per draw")
    for count, team in teams.items():
        ratios = [own / base for own, base in zip(times[count], times[first], strict=True)]
        each = statistics.median(ratios) * first / count
        row(
            count,
            spread([1e3 * value for value in times[count]], ".1f"),
            spread(ratios, ".2f"),
            f"{each:.2f}",
        )
        team.end()


def race(options: Mapping[str, Any], draws: Sequence[int]) -> None:
    """Train a model per number of draws and seed for the same seconds, in turns, and print how well each validates."""
    words = (
        f"train.batch_size={options['batch']}",
        f"train.device={options['device']}",
        f"train.val_samples={SCENES}",
        f"train.parallel.strategy={options['strategy']}",
        f"train.parallel.compile={str(options['compiled']).lower()}",
    )
    found: dict[int, list[list[float]]] = {count: [] for count in draws}
    with _folder(options["folder"]) as folder:
        print(f"\n{Lesson(folder, options['episodes'], words).prepare()}", flush=True)
        for seed in range(options["seeds"]):
            teams = {}
            for count in draws:
                own = (*words, f"train.action_draws={count}", f"train.seed={seed}")
                lesson = Lesson(folder, options["episodes"], own)
                teams[count] = Team(options["ranks"], options["device"], Racer, lesson, options["seconds"])
            for count, numbers in _raced(teams, options["seconds"], options["turn"]).items():
                found[count].append(numbers)
    _show(found, options)


def _raced(teams: Mapping[int, Team], seconds: float, turn: float) -> dict[int, list[float]]:
    """Per K: steps a second, then action and foresight loss at every mark."""
    found: dict[int, list[float]] = {count: [0.0] for count in teams}
    for team in teams.values():  # so that nobody starts beside those that train
        team.wait()
    for mark in range(MARKS):
        spent, until = seconds * mark / MARKS, seconds * (mark + 1) / MARKS
        while spent < until:
            spent = min(until, spent + turn)
            for count, team in teams.items():
                steps, took = team.ask("train", spent)
                found[count][0] = steps / took
        for count, team in teams.items():
            found[count] += team.ask("validate")
    for team in teams.values():
        team.end()
    return found


def _show(found: Mapping[int, list[list[float]]], options: Mapping[str, Any]) -> None:
    """Print the table: over seeds, the median and from the least to the most."""
    marks = [f"{options['seconds'] * (mark + 1) / MARKS:g} s" for mark in range(MARKS)]
    print(
        f"\nValidation losses (action; foresight) of the averaged weights after so many seconds of training, "
        f"{SCENES} samples at most, {options['seeds']} seeds\n"
    )
    head("K", "steps / s", "samples / s", "draws / s", *marks)
    for count, runs in found.items():
        pace = statistics.median(run[0] for run in runs)
        rates = (f"{pace:.2f}", f"{pace * options['batch']:.0f}", f"{pace * options['batch'] * count:.0f}")
        losses = [spread(values, ".4f") for values in list(zip(*runs, strict=True))[1:]]
        pairs = zip(losses[::2], losses[1::2], strict=True)
        row(count, *rates, *(f"{action}; {foresight}" for action, foresight in pairs))


@contextmanager
def _folder(wanted: str) -> Iterator[Path]:
    if wanted:
        yield Path(wanted).resolve()
        return
    with TemporaryDirectory(prefix="action-draws-") as made:
        yield Path(made)


if __name__ == "__main__":
    main()

"""Does foresight help? What a policy of the demo's size loses when a part is taken away before it is trained.

    python tools/foresight_ablation.py output=outputs/foresight [arms=A,B,C,D] [seeds=3] [steps=3000] [episodes=200]
        [demonstrations=600] [turns=4] [at_once=1] [checkpoints=12] [key=value …]

A is the whole model, B has no generation expert, C no foresight loss, D the present frame in the place of the history.
One dataset is recorded, half of whose scenes stand still. Every arm is trained on it with every seed: the same batches,
noise and, where shapes agree, initial weights. Arms take `turns` turns on the machine, `at_once` of them side by side,
each with its share of the cores. Each policy then drives
`episodes` scenes with a moving belt and as many with a resting one, which are the seed's own and the same for all arms:
at equal steps, and at the one of `checkpoints` checkpoints where each arm had trained as long as the quickest arm did
in all. Further words go to `vla-mot posttrain`.

Writes <output>/table.md, results.json and ablation.png, and prints the table for docs/foresight.md. What is there is
not done again: however it ended, the same command goes on. More arms or seeds may be asked for later.
"""

import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from vla_mot.commands import folders
from vla_mot.commands import main as command_line
from vla_mot.commands.folders import write_atomic, write_facts
from vla_mot.commands.scripts import end_with_parent, run_script, seconds_per_step
from vla_mot.errors import ConfigError
from vla_mot.evaluate.foresight_report import SCORES_FILE
from vla_mot.evaluate.intervals import Interval, clustered, clustered_difference
from vla_mot.evaluate.machine import describe_machine
from vla_mot.evaluate.results import RESULTS_FILE, Evaluation
from vla_mot.hub.checkpoint import open_checkpoint
from vla_mot.infer.policy import Policy
from vla_mot.model.model import VlaMotModel
from vla_mot.options import at_least
from vla_mot.train.checkpoint import POLICY_FOLDER, newest_checkpoint

ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "A": ("full", ()),
    "B": ("no generation expert", ("model.generation=null", "foresight=none")),
    "C": ("no foresight loss, λ = 0", ("train.foresight_weight=0",)),
    "D": ("history replaced by the present", ("foresight.history=present",)),
}
EFFECTS = {"foresight": "C", "history": "D", "generation expert": "B"}
"""What is measured, and the arm that lacks it."""
MOTIONS = {"dynamic": "moving belt", "static": "belt at rest"}
BUDGETS = {"steps": "equal steps", "time": "equal wall-clock"}
FIRST_SCENE = 100_000
UNTRAINED = "C"  # its foresight head, which no loss reaches
DEFAULTS = {
    "seeds": 3,
    "steps": 3000,
    "episodes": 200,
    "demonstrations": 600,
    "turns": 4,
    "at_once": 1,
    "checkpoints": 12,
}
_LOOK = 0.5  # seconds between two looks at a run that is to end its turn
_KEPT = 10_000  # checkpoints: all, also those between two turns

Wins = dict[tuple[str, str, str], list[list[bool]]]
"""(arm, motion, budget) → per training seed, whether each episode succeeded."""


@dataclass(frozen=True)
class Settings:
    """What was asked for. words: for training. arms, seeds and turns change no result that is there.

    command: as it was typed.
    """

    output: Path
    steps: int
    episodes: int
    demonstrations: int
    checkpoints: int
    words: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: int
    turns: int
    at_once: int
    command: str

    @classmethod
    def read(cls, words: Sequence[str]) -> "Settings":
        """From `key=value` words. Raises ConfigError for a value that does not fit."""
        given = dict(word.partition("=")[::2] for word in words)
        if "output" not in given:
            raise ConfigError("output must be given: write output=<folder>.")
        asked = given.get("arms", ",".join(ARMS)).split(",")
        if "A" not in asked or not set(asked) <= ARMS.keys():
            raise ConfigError(f"arms must be some of {','.join(ARMS)}, with A, got {','.join(asked)}.")
        arms = tuple(arm for arm in ARMS if arm in asked)
        try:
            numbers = {key: int(given.get(key, value)) for key, value in DEFAULTS.items()}
        except ValueError as error:
            raise ConfigError(f"{', '.join(DEFAULTS)} are whole numbers: {error}.") from error
        at_least(1, numbers)
        own = {"output", "arms", *DEFAULTS}
        further = tuple(word for word in words if word.partition("=")[0] not in own)
        typed = f"python tools/foresight_ablation.py {' '.join(words)}"
        return cls(output=Path(given["output"]), arms=arms, words=further, command=typed, **numbers)

    @property
    def grid(self) -> list[int]:
        """Steps of which there are checkpoints."""
        every = self.save_every
        return [*range(every, self.steps, every), self.steps]

    @property
    def save_every(self) -> int:
        """Steps between two checkpoints."""
        return math.ceil(self.steps / self.checkpoints)

    def run(self, arm: str, seed: int) -> Path:
        """The folder of a training run."""
        return self.output / "runs" / f"{arm}-{seed}"

    def policy(self, arm: str, seed: int, step: int) -> Path:
        """A policy that a run saved."""
        return self.run(arm, seed) / "checkpoints" / f"{step:06d}" / POLICY_FOLDER

    def start(self, seed: int) -> Path:
        """What arm B starts from."""
        return self.output / "start" / f"B-{seed}"


def main(words: list[str]) -> None:
    """Record, train, drive, compare."""
    settings = Settings.read(words)
    require_same(settings)
    if not (settings.output / "dataset").is_dir():
        command(
            "data", "record", f"output={settings.output / 'dataset'}", f"episodes={settings.demonstrations}",
            "static_fraction=0.5",
        )  # fmt: skip
    train(settings)
    costs = {
        arm: seconds_per_step(settings.run(arm, seed) for seed in range(settings.seeds))
        for arm in settings.arms
    }
    chosen = {"steps": dict.fromkeys(settings.arms, settings.steps), "time": equal_time(settings, costs)}
    wins = {
        (arm, motion, budget): [drive(settings, arm, seed, step, motion) for seed in range(settings.seeds)]
        for budget, steps in chosen.items()
        for arm, step in steps.items()
        for motion in MOTIONS
    }
    foresight = {arm: errors(settings, arm) for arm in settings.arms if arm != "B"}
    found = summary(settings, wins, costs, chosen["time"], foresight)
    write_facts(settings.output / "results.json", found)
    write_atomic(settings.output / "table.md", table(found) + "\n")
    draw(found, settings.output / "ablation.png")
    print(table(found))


def require_same(settings: Settings) -> None:
    """Raise ConfigError where the folder holds another experiment; else note this one."""
    mine = {
        key: asdict(settings)[key]
        for key in ("steps", "episodes", "demonstrations", "checkpoints", "at_once")
    }
    folders.require_same(settings.output, mine | {"words": list(settings.words)})


def command(*words: str) -> None:
    """One vla-mot command; ends the script when it fails."""
    if code := command_line.main(words):
        raise SystemExit(code)


# ---- training ---------------------------------------------------------------------------------------------------


def turns(settings: Settings) -> Iterator[tuple[str, int, int]]:
    """(arm, seed, step until which it trains), so that what slows the machine for a while slows all arms alike."""
    grid = settings.grid
    for turn in range(settings.turns):
        until = grid[math.ceil(len(grid) * (turn + 1) / settings.turns) - 1]
        place = turn % len(settings.arms)  # A first at first: arm B starts from its weights
        for seed in range(settings.seeds):
            for arm in settings.arms[place:] + settings.arms[:place]:
                yield arm, seed, until


def train(settings: Settings) -> None:
    """All turns, as many side by side as may be."""
    waiting, running = list(turns(settings)), list[Training]()
    try:
        while waiting or running:
            running = [training for training in running if not training.ended()]
            busy = [training.run for training in running]
            ready = (turn for turn in waiting if is_ready(settings, *turn[:2], busy))
            if len(running) < settings.at_once and (turn := next(ready, None)):
                waiting.remove(turn)
                if saved(settings.run(*turn[:2])) < turn[2]:
                    running.append(Training(settings, *turn))
            else:
                time.sleep(_LOOK)
    finally:
        for training in running:
            training.close()


def is_ready(settings: Settings, arm: str, seed: int, busy: Sequence[Path]) -> bool:
    """Whether a run may go on. The first one makes the frames that all read, and an A the weights its B begins with."""
    needed = [("A", 0)] if arm != "B" else [("A", 0), ("A", seed)]
    there = all((arm, seed) == other or saved(settings.run(*other)) >= 0 for other in needed)
    return there and settings.run(arm, seed) not in busy


class Training:
    """A run on its way to the checkpoint of a step, in a process of its own, which is stopped as a scheduler would."""

    def __init__(self, settings: Settings, arm: str, seed: int, until: int) -> None:
        if arm == "B":
            give_start(settings, seed)
        self.run, self._until, self._whole = settings.run(arm, seed), until, until == settings.steps
        self._asked = False
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "vla_mot.commands.main",
                "posttrain",
                *training_words(settings, arm, seed),
            ],
            env=share(settings.at_once) | os.environ,
            preexec_fn=end_with_parent,
        )

    def ended(self) -> bool:
        """Whether it is done with its turn, which is asked to end in time. Ends the script where a run failed."""
        if self._process.poll() is None:
            if not self._asked and not self._whole and saved(self.run) >= self._until:
                self._process.send_signal(signal.SIGTERM)
                self._asked = True
            return False
        stopped = (command_line.STOPPED, -signal.SIGTERM) if self._asked else ()
        if self._process.returncode not in (command_line.OK, *stopped):
            raise SystemExit(self._process.returncode)
        return True

    def close(self) -> None:
        """Stop it, if it still runs."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()


def share(at_once: int) -> dict[str, str]:
    """Of the cores that this script may use, for one of so many trainings: the environment it gets unless told."""
    threads = max(1, int(describe_machine()["cores"]) // at_once)
    return {} if at_once == 1 else {"OMP_NUM_THREADS": f"{threads}"}


def training_words(settings: Settings, arm: str, seed: int) -> list[str]:
    """What `vla-mot posttrain` is told: the demo's recipe, less what the arm lacks."""
    return [
        "experiment=conveyor",
        *ARMS[arm][1],
        *([f"init_from={settings.start(seed)}"] if arm == "B" else []),
        f"data.root={settings.output / 'dataset'}",
        f"data.cache={settings.output / 'frames'}",
        f"output={settings.run(arm, seed)}",
        "resume=auto",
        f"train.seed={seed}",
        f"train.steps={settings.steps}",
        f"train.save_every={settings.save_every}",
        f"train.keep_checkpoints={_KEPT}",
        "train.log.writers=[]",
        "train.log.utilisation=false",
        *settings.words,
    ]


def saved(run: Path) -> int:
    """The step of a run's newest checkpoint, −1 without any."""
    newest = newest_checkpoint(run)
    return -1 if newest is None else int(newest.name)


def give_start(settings: Settings, seed: int) -> None:
    """Arm A's initial weights, less those that arm B does not have: random numbers would be drawn in another order."""
    place = settings.start(seed)
    if place.is_dir():
        return
    found = open_checkpoint(settings.policy("A", seed, 0))
    spec = replace(found.spec, model=replace(found.spec.model, generation=None, foresight=None))
    model, whole = VlaMotModel(spec.model), found.load().state_dict()
    model.load_state_dict({name: whole[name] for name in model.state_dict()})
    Policy(model, spec).save_pretrained(place)


def equal_time(settings: Settings, costs: Mapping[str, float]) -> dict[str, int]:
    """Arm → the checkpoint whose training took nearest to what the quickest arm took in all."""
    budget = min(costs.values()) * settings.steps
    return {
        arm: min(settings.grid, key=lambda step: abs(step * costs[arm] - budget)) for arm in settings.arms
    }


# ---- driving ----------------------------------------------------------------------------------------------------


def place_of(settings: Settings, arm: str, seed: int, step: int, motion: str) -> Path:
    """The folder of an evaluation."""
    return settings.output / "evaluation" / f"{arm}-{seed}" / f"{step:06d}-{motion}"


def drive(settings: Settings, arm: str, seed: int, step: int, motion: str) -> list[bool]:
    """Whether each episode of a seed succeeded. The last checkpoint's foresight is scored, too."""
    place = place_of(settings, arm, seed, step, motion)
    scored = step == settings.steps and motion == "dynamic" and arm != "B"
    if not (place / RESULTS_FILE).is_file() or (scored and not (place / SCORES_FILE).is_file()):
        shutil.rmtree(place, ignore_errors=True)  # it ended between episodes and foresight
        command(
            "evaluate",
            f"checkpoint={settings.policy(arm, seed, step)}",
            f"output={place}",
            f"episodes={settings.episodes}",
            f"seed={FIRST_SCENE + seed * settings.episodes}",
            "parallel=50",
            "videos=0",
            f"env.motion={motion}",
            *(
                [f"dataset={settings.output / 'dataset'}", f"cache={settings.output / 'frames'}"]
                if scored
                else []
            ),
        )
    return [episode.success for episode in Evaluation.load(place).arms[0].episodes]


def errors(settings: Settings, arm: str) -> dict[str, dict[str, list[float]]]:
    """Method → camera → per seed, the latent error where something moves in held-out episodes."""
    found: dict[str, dict[str, list[float]]] = {"foresight": {}, "copy_last": {}}
    for seed in range(settings.seeds):
        report = Evaluation.load(place_of(settings, arm, seed, settings.steps, "dynamic")).foresight
        for score in report.scores if report else ():
            if score.region == "moving" and score.method in found:
                found[score.method].setdefault(score.view, []).append(score.mse.value)
    return found


# ---- what was found -----------------------------------------------------------------------------------------------


def summary(
    settings: Settings,
    wins: Wins,
    costs: Mapping[str, float],
    at_time: Mapping[str, int],
    foresight: Mapping[str, Mapping[str, Mapping[str, list[float]]]],
) -> dict[str, Any]:
    """Plain values for results.json, of which table and picture are made."""

    def rates(key: tuple[str, str, str]) -> list[float]:
        return [statistics.fmean(seed) for seed in wins[key]]

    return {
        "arms": {
            arm: {
                "name": ARMS[arm][0],
                "seconds_per_step": costs[arm],
                "steps_at_equal_time": at_time[arm],
                "success": {
                    f"{motion}, {budget}": clustered(
                        rates((arm, motion, budget)), within=(0.0, 1.0)
                    ).to_dict()
                    | {"seeds": rates((arm, motion, budget))}
                    for motion in MOTIONS
                    for budget in BUDGETS
                },
                "foresight_error": {
                    method: {view: clustered(values).to_dict() for view, values in views.items()}
                    for method, views in foresight.get(arm, {}).items()
                },
            }
            for arm in settings.arms
        },
        "effects": {
            effect: {
                f"{motion}, {budget}": clustered_difference(
                    wins["A", motion, budget], wins[arm, motion, budget]
                ).to_dict()
                for motion in MOTIONS
                for budget in BUDGETS
            }
            for effect, arm in EFFECTS.items()
            if arm in settings.arms
        },
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()},
        "provenance": {"command": settings.command, "date": f"{date.today()}", **describe_machine()},
    }


def table(found: Mapping[str, Any]) -> str:
    """Markdown: what each part is worth, and the arms themselves."""
    columns = [
        (f"{motion}, {budget}", f"{MOTIONS[motion]}, {BUDGETS[budget]}")
        for budget in BUDGETS
        for motion in MOTIONS
    ]
    heads = " | ".join(title for _, title in columns)
    lines = [f"| worth of | {heads} |", f"|---|{'---|' * len(columns)}"]
    for effect, cells in found["effects"].items():
        told = " | ".join(points(Interval.from_dict(cells[key])) for key, _ in columns)
        lines.append(f"| {effect}, A − {EFFECTS[effect]} | {told} |")
    lines += [
        "",
        f"| arm | {heads} | foresight error, {views(found)} | s per step | steps at equal wall-clock |",
    ]
    lines.append(f"|---|{'---|' * (len(columns) + 3)}")
    for arm, told in found["arms"].items():
        rates = " | ".join(percent(Interval.from_dict(told["success"][key])) for key, _ in columns)
        lines.append(
            f"| {arm} {told['name']} | {rates} | {foreseen(arm, told)} | {told['seconds_per_step']:.3f} | "
            f"{told['steps_at_equal_time']} |"
        )
    made, asked = found["provenance"], found["settings"]
    lines += [
        "",
        f"(`{made['command']}`, {made['date']}, seeds 0 to {asked['seeds'] - 1}, {asked['steps']} steps, "
        f"{asked['episodes']} episodes per seed and motion; {made['processor']}, {made['cores']} cores. 95 % intervals "
        "over seeds (not known where these do not differ); differences in percentage points.)",
    ]
    return "\n".join(lines)


def views(found: Mapping[str, Any]) -> str:
    """The cameras whose foresight was scored, and what copying the last frame would give."""
    copied = found["arms"]["A"]["foresight_error"]["copy_last"]
    return (
        " / ".join(f"{view} (copying: {error['value']:.2f})" for view, error in copied.items())
        or "not scored"
    )


def foreseen(arm: str, told: Mapping[str, Any]) -> str:
    """`1.13 / 0.49` of the cameras."""
    values = [error["value"] for error in told["foresight_error"].get("foresight", {}).values()]
    note = ", untrained" if arm == UNTRAINED and values else ""
    return " / ".join(f"{value:.2f}" for value in values) + note if values else "—"


def points(difference: Interval) -> str:
    """`+12 (3 … 21)` percentage points."""
    return f"{100 * difference.value:+.1f} {between(difference)}"


def percent(rate: Interval) -> str:
    """`75 % (66 … 82)`."""
    return f"{100 * rate.value:.1f} % {between(rate)}"


def between(found: Interval) -> str:
    """The ends in percent, if they are known."""
    return "(not known)" if math.isnan(found.low) else f"({100 * found.low:.1f} … {100 * found.high:.1f})"


def draw(found: Mapping[str, Any], path: Path) -> None:
    """The differences with their intervals, by motion and budget."""
    figure, axes = plt.subplots(
        1, len(BUDGETS), figsize=(9, 3.2), layout="constrained", sharey=True, squeeze=False
    )
    effects = list(found["effects"])
    for axis, (budget, title) in zip(axes[0], BUDGETS.items(), strict=True):
        for place, (motion, label) in enumerate(MOTIONS.items()):
            told = [Interval.from_dict(found["effects"][effect][f"{motion}, {budget}"]) for effect in effects]
            rows = [row + 0.24 * place for row in range(len(effects))]
            sides = [[i.value - i.low for i in told], [i.high - i.value for i in told]]
            axis.errorbar([i.value for i in told], rows, xerr=sides, fmt="o", capsize=3, label=label)
            for interval, row in zip(told, rows, strict=True):
                if math.isnan(interval.low):
                    axis.annotate(
                        "interval not known", (interval.value, row), (6, 2), textcoords="offset points"
                    )
        axis.axvline(0, color="grey", linewidth=0.8)
        axis.set(title=title, xlabel="difference in success (95 % interval)")
        axis.set_yticks([row + 0.12 for row in range(len(effects))], effects)
    axes[0][0].invert_yaxis()
    axes[0][0].legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run_script(main)

"""Meta-World on the machine at hand: our policy and lerobot's ACT, on the same demonstrations, for the same time.

    python tools/metaworld_benchmark.py outputs/metaworld [--minutes 60] [--tasks …] [--rollouts 50] [--seed 0]
        [--policies expert ours act act_small lerobot]

Records demonstrations of the scripted experts, measures how many training steps of each policy fit into the minutes,
trains them, drives all on the same seeds, ours through `lerobot-eval` too, and prints the table for docs/metaworld.md.
What is finished is not done again: however it ended, the same command goes on, trainings included. Of the options only
--policies may change in a folder. Once it has recorded, calls with other policies may work in it at the same time.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vla_mot.commands import main as command_line
from vla_mot.commands import simulators
from vla_mot.commands.folders import read_facts, require_same, whole, write_facts
from vla_mot.commands.scripts import end_with_parent, run_script, seconds_per_step
from vla_mot.data.split import split_episodes
from vla_mot.errors import ConfigError
from vla_mot.evaluate.closed_loop import run_episodes
from vla_mot.evaluate.intervals import wilson
from vla_mot.evaluate.machine import describe_machine
from vla_mot.evaluate.metaworld import graphics
from vla_mot.evaluate.results import Arm, Evaluation
from vla_mot.options import at_least

TASKS = ("drawer-open-v3", "push-v3", "pick-place-v3")
LEROBOT_FILE = "eval_info.json"  # what lerobot-eval writes in the end
FIRST_SEED = 100_000  # of the rollouts; the demonstrations' is --seed
COUNTS = ("demonstrations", "rollouts", "lerobot_rollouts", "max_steps")
PACE_STEPS = 60
_NOTED_EVERY = 10.0  # seconds: what a killed training may lose of its time


@dataclass(frozen=True)
class Baseline:
    """A configuration of lerobot's ACT. executes: how many steps of its chunks, a row of the table for each."""

    label: str
    words: tuple[str, ...]
    executes: tuple[int, ...]


# ACT has 52 million weights, of which a CPU trains few steps in an hour: the small one is what would be chosen there.
BASELINES = {
    "act": Baseline("lerobot's ACT", (), (10, 100)),
    "act_small": Baseline(
        "lerobot's ACT, made small",
        (
            "--policy.dim_model=128",
            "--policy.dim_feedforward=512",
            "--policy.n_heads=4",
            "--policy.chunk_size=20",
            "--policy.n_action_steps=10",
            "--policy.optimizer_lr=1e-4",
            "--policy.optimizer_lr_backbone=1e-4",
            "--batch_size=32",
        ),
        (10,),
    ),
}


OURS, EXPERT, LEROBOT = "ours", "expert", "lerobot"
POLICIES = (EXPERT, OURS, *BASELINES, LEROBOT)
"""The table's order. `lerobot` is ours, driven by `lerobot-eval`."""


class Benchmark:
    """The stages in order. Every one leaves its result under `root`, and is left out where it is there."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.root = options, options.output
        self.dataset, self.ours = self.root / "dataset", self.root / OURS
        self.env = {
            "name": "metaworld",
            "cameras": ["corner2"],
            "image_size": 96,
            "render": options.render,
            "max_steps": options.max_steps,
        }

    def run(self) -> None:
        """Everything; ends the script where a command fails."""
        self.require_same()
        self.record()
        for name in (name for name in POLICIES if name in self.options.policies):
            if name in (OURS, *BASELINES):
                self.timed(name, partial(self.train, name, self.root / name, self.steps(name)))
            for task in self.options.tasks:
                self.drive(name, task)
        print(self.table())

    def require_same(self) -> None:
        """Raise ConfigError where the folder was made with other options; else note these."""
        mine = {key: value for key, value in vars(self.options).items() if key not in ("output", "policies")}
        if LEROBOT not in self.options.policies:
            del mine["lerobot_rollouts"]
        require_same(self.root, mine)

    # -- demonstrations and training ---------------------------------------------------------------------

    def record(self) -> None:
        """Demonstrations of all tasks in turn."""
        if not self.dataset.exists():
            count = self.options.demonstrations * len(self.options.tasks)
            tasks = ",".join(self.options.tasks)
            words = [f"episodes={count}", f"seed={self.options.seed}", "embodiment=metaworld_corner2"]
            vla_mot("data", "record", f"output={self.dataset}", *words, *self.env_words(f"[{tasks}]"))

    def steps(self, name: str) -> int:
        """Training steps that fit into the minutes, by a short run's pace; measured once."""
        facts = read_facts(self.root / f"{name}_pace.json")
        if facts is None:
            measure = self.pace_of_ours if name == OURS else self.pace_of_act
            facts = {"seconds_per_step": measure(name, self.root / f"{name}_pace")}
            write_facts(self.root / f"{name}_pace.json", facts)
        return max(1, int(self.options.minutes * 60 / facts["seconds_per_step"]))

    def pace_of_ours(self, name: str, place: Path) -> float:
        """Seconds per step."""
        self.train_ours(place, PACE_STEPS, "train.log_every=10")
        return seconds_per_step([place])

    def pace_of_act(self, name: str, place: Path) -> float:
        """The same; lerobot says what a step and its data took, from the second log window on."""
        shutil.rmtree(place, ignore_errors=True)  # going on, it would say little or nothing
        said = self.train_act(name, place, PACE_STEPS, "--log_freq=10")
        _, *found = re.findall(r"updt_s:([\d.]+) data_s:([\d.]+)", said)
        return sum(float(update) + float(data) for update, data in found) / len(found)

    def train(self, name: str, place: Path, steps: int) -> None:
        """Train one of the policies."""
        if name == OURS:
            self.train_ours(place, steps)
        else:
            self.train_act(name, place, steps)

    def train_ours(self, place: Path, steps: int, *words: str) -> None:
        """Ours, on nine tenths of the episodes."""
        data = [f"data.root={self.dataset}", f"data.cache={self.root / 'frames'}", "resume=auto"]
        every = [f"train.{key}_every={max(1, steps // 10)}" for key in ("save", "val")]
        vla_mot(
            "posttrain", "experiment=posttrain_metaworld", f"output={place}", *data, *every,
            f"train.steps={steps}", f"train.seed={self.options.seed}", *words, *self.options.ours,
        )  # fmt: skip

    def train_act(self, name: str, place: Path, steps: int, *words: str) -> str:
        """lerobot's ACT without weights from anywhere, on the same episodes. Returns what it said."""
        last = place / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
        if last.is_file():
            return lerobot("train", f"--config_path={last}", "--resume=true")
        shutil.rmtree(place, ignore_errors=True)  # it ended before its first checkpoint; lerobot wants none
        info = json.loads((self.dataset / "meta" / "info.json").read_text())
        episodes, _ = split_episodes(info["total_episodes"], 0.1)
        return lerobot(
            "train", f"--dataset.repo_id=local/{self.dataset.name}", f"--dataset.root={self.dataset}",
            f"--dataset.episodes={list(episodes)}", "--policy.type=act", "--policy.device=cpu",
            "--policy.pretrained_backbone_weights=null", "--policy.push_to_hub=false", f"--output_dir={place}",
            f"--steps={steps}", f"--save_freq={max(1, -(-steps // 4))}", f"--seed={self.options.seed}",
            "--num_workers=1", *BASELINES[name].words, *words, *self.options.act,
        )  # fmt: skip

    def timed(self, name: str, work: Callable[[], Any]) -> None:
        """Do it unless it is done, and add up the seconds, also of what was interrupted or killed."""
        path = self.root / f"{name}.json"
        facts = read_facts(path) or {"finished": False, "seconds": 0.0}
        if facts["finished"]:
            return
        started = time.monotonic()

        def note(finished: bool = False) -> None:
            spent = facts["seconds"] + time.monotonic() - started
            write_facts(path, {"finished": finished, "seconds": spent})

        with repeated(note):
            work()
        note(finished=True)

    # -- evaluation --------------------------------------------------------------------------------------

    def drive(self, name: str, task: str) -> None:
        """One policy on the seeds of one task, which are the same for all."""
        trained = self.ours / "checkpoints" / "last" / "pretrained_model"
        if name == LEROBOT:
            if not (read_facts(self.root / f"{OURS}.json") or {"finished": False})["finished"]:
                raise ConfigError(
                    f"--policies {LEROBOT} drives what {OURS} trains, which is not there: add {OURS}."
                )
            self.drive_by_lerobot(trained, task)
        elif name in BASELINES:
            for executed in BASELINES[name].executes:
                self.drive_act(name, task, executed)
        else:
            self.drive_ours(name, task, "controller=expert" if name == EXPERT else f"checkpoint={trained}")

    def drive_ours(self, name: str, task: str, *words: str) -> None:
        """`vla-mot evaluate`."""
        place = self.place(name, task)
        if not self.is_driven(name, task):
            counts = [f"episodes={self.options.rollouts}", f"seed={FIRST_SEED}", "parallel=10", "videos=1"]
            vla_mot("evaluate", f"output={place}", *words, *counts, *self.env_words(f"[{task}]"))

    def drive_act(self, name: str, task: str, executed: int) -> None:
        """ACT in the same loop."""
        from vla_mot.evaluate.lerobot_policy import LeRobotController

        place = self.place(f"{name}{executed}", task)
        if not place.exists():
            controller = LeRobotController(
                self.root / name / "checkpoints" / "last" / "pretrained_model", executed
            )
            seeds = range(FIRST_SEED, FIRST_SEED + self.options.rollouts)
            make = simulators.make_env({**self.env, "tasks": [task], "lazy": True})
            episodes = run_episodes(make, controller, seeds, parallel=10)
            with whole(place) as folder:
                Evaluation((Arm(name, BASELINES[name].label, tuple(episodes)),)).save(folder)

    def drive_by_lerobot(self, policy: Path, task: str) -> None:
        """`lerobot-eval`, which draws its pictures five times as wide, with all shadows."""
        place = self.place(LEROBOT, task)
        if not self.is_driven(LEROBOT, task):
            lerobot(
                "eval", f"--policy.path={policy}", "--policy.device=cpu", "--env.type=metaworld",
                f"--env.task={task}", f"--eval.n_episodes={self.options.lerobot_rollouts}",
                "--eval.batch_size=1", f"--seed={FIRST_SEED}", f"--output_dir={place}",
            )  # fmt: skip

    def is_driven(self, name: str, task: str) -> bool:
        """Whether all episodes are there: lerobot makes the folder first and the file in it last."""
        place = self.place(name, task)
        return (place / LEROBOT_FILE if name == LEROBOT else place).exists()

    def place(self, name: str, task: str) -> Path:
        """Where the results of one policy on one task lie."""
        return self.root / "results" / f"{name}-{task}"

    def env_words(self, tasks: str) -> list[str]:
        """The environment as words of a command."""
        settings = {key: value for key, value in self.env.items() if key != "name"} | {"tasks": tasks}
        said = {
            key: "[" + ",".join(value) + "]" if isinstance(value, list) else value
            for key, value in settings.items()
        }
        return ["env=metaworld", *(f"env.{key}={value}" for key, value in said.items())]

    # -- what was found ----------------------------------------------------------------------------------

    def table(self) -> str:
        """Markdown: a row per policy that was driven, a column per task, success with its 95 % interval, and how."""
        lines = [f"| | {' | '.join(self.options.tasks)} | all | training |"]
        lines.append("|---|" + "---|" * (len(self.options.tasks) + 2))
        for name, (label, trained) in rows().items():
            if not all(self.is_driven(name, task) for task in self.options.tasks):
                continue
            counts = [self.successes(name, task) for task in self.options.tasks]
            counts.append((sum(count for count, _ in counts), sum(of for _, of in counts)))
            spent = self.spent(trained) if trained else ""
            lines.append(f"| {label} | {' | '.join(cell(*count) for count in counts)} | {spent} |")
        machine = ", ".join(f"{key}: {value}" for key, value in describe_machine().items())
        seeds = f"{FIRST_SEED} … {FIRST_SEED + self.options.rollouts - 1}"
        command = shlex.join(["python", *sys.argv])
        return "\n".join([*lines, "", f"`{command}`; rollout seeds {seeds}; {machine}"])

    def spent(self, name: str) -> str:
        """`61 min, 5,400 steps`: what a training took, and of what step the policy is that was driven."""
        minutes = (read_facts(self.root / f"{name}.json") or {})["seconds"] / 60
        steps = int((self.root / name / "checkpoints" / "last").resolve().name)
        return f"{minutes:.0f} min, {steps:,} steps"

    def successes(self, name: str, task: str) -> tuple[int, int]:
        """(successes, episodes)."""
        place = self.place(name, task)
        if name != LEROBOT:
            episodes = Evaluation.load(place).arms[0].episodes
            return sum(episode.success for episode in episodes), len(episodes)
        overall = json.loads((place / LEROBOT_FILE).read_text())["overall"]
        return round(overall["pc_success"] / 100 * overall["n_episodes"]), overall["n_episodes"]


def rows() -> dict[str, tuple[str, str]]:
    """What is driven, in the table's order: its name → (label, what was trained for it)."""
    found = {EXPERT: ("scripted expert", ""), OURS: ("vla_mot", OURS)}
    for name, baseline in BASELINES.items():
        for executed in baseline.executes:
            label = f"{baseline.label}, {executed} steps of a chunk executed"
            found[f"{name}{executed}"] = (label, name)
    return found | {LEROBOT: ("vla_mot by `lerobot-eval`", OURS)}


def cell(count: int, of: int) -> str:
    """`38/50, 76 % (63–86)`."""
    found = wilson(count, of)
    return f"{count}/{of}, {found.value:.0%} ({100 * found.low:.0f}–{100 * found.high:.0f})".replace(
        "%", " %", 1
    )


@contextmanager
def repeated(act: Callable[[], None]) -> Iterator[None]:
    """Meanwhile a thread does `act()` every now and then; however the block ends, it is done once more."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_NOTED_EVERY):
            act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        act()


def vla_mot(*words: str) -> None:
    """One of our commands, in this process; ends the script when it fails."""
    if code := command_line.main(list(words)):
        raise SystemExit(code)


def lerobot(name: str, *words: str) -> str:
    """One of lerobot's commands; ends the script when it fails. Returns what it said."""
    program = Path(sys.executable).with_name(f"lerobot-{name}")
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    said: list[str] = []
    with subprocess.Popen(
        [program, *words], env=offline, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=end_with_parent,
    ) as running:  # fmt: skip
        try:
            for line in running.stdout or ():
                said.append(line)
                print(line, end="", file=sys.stderr)
        except BaseException:  # interrupted or told to end
            running.terminate()
            raise
    if running.returncode:
        raise SystemExit(f"lerobot-{name} ended with {running.returncode}:\n{''.join(said[-20:])}")
    return "".join(said)


def parse(words: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--demonstrations", type=int, default=100, help="per task")
    parser.add_argument("--minutes", type=float, default=60, help="of training, for each policy")
    parser.add_argument("--rollouts", type=int, default=50, help="per task and policy")
    parser.add_argument("--lerobot-rollouts", type=int, default=50, help="per task by lerobot-eval")
    parser.add_argument("--seed", type=int, default=0, help="of demonstrations and trainings")
    parser.add_argument(
        "--render", default="shadows", help="of demonstrations and rollouts; see conf/env/metaworld.yaml"
    )
    parser.add_argument("--max-steps", type=int, default=500, help="of a rollout in our loop")
    parser.add_argument(
        "--policies",
        nargs="*",
        choices=POLICIES,
        default=list(POLICIES),
        help="what this call trains and drives; nothing: it records",
    )
    parser.add_argument(
        "--ours",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a further word for vla-mot posttrain",
    )
    parser.add_argument(
        "--act", action="append", default=[], metavar="--KEY=VALUE", help="a further word for lerobot-train"
    )
    found = parser.parse_args(words)
    at_least(1, {f"--{key.replace('_', '-')}": getattr(found, key) for key in COUNTS})
    return found


def main(words: list[str]) -> None:
    """Run what is lacking, and print the table."""
    graphics.choose()
    Benchmark(parse(words)).run()


if __name__ == "__main__":
    run_script(main)

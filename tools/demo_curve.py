"""The demo's learning curve beyond its budget: trains `factor` times as long and drives every checkpoint.

    python tools/demo_curve.py outputs/demo outputs/curve [factor=10] [episodes=100]

Needs the dataset and the decoded frames of a finished `make demo`. Writes <output>/run, one evaluation per
checkpoint, <output>/curve.json and docs/demo_curve.png, and prints the table for docs/demo.md. What is there is not
computed again, so an interrupted curve goes on with the same command; another demo, or other options, are refused in
its folder.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from vla_mot.commands import main as command_line
from vla_mot.commands.folders import find_policy, read_config, require_same
from vla_mot.commands.scripts import run_script
from vla_mot.evaluate.results import POLICY_HASH, Evaluation
from vla_mot.hub.manifest import identity
from vla_mot.train.log import read_log

PICTURE = Path(__file__).parents[1] / "docs" / "demo_curve.png"
ARMS = {"policy": (), "no_history": ("history=present",)}


def main(words: list[str]) -> None:
    """Train, evaluate, draw."""
    demo, output = Path(words[0]), Path(words[1])
    options = {"factor": 10, "episodes": 100} | {k: int(v) for k, v in (w.split("=") for w in words[2:])}
    require_same(output, {**options, POLICY_HASH: identity(find_policy(demo))})
    base = read_config(demo / "run")["train"]["steps"]
    train(demo, output / "run", base, options["factor"])
    points = [
        point(output, step, options["episodes"]) | {"budget": step / base}
        for step in (base * n for n in (1, 2, 3, 5, 7, 10) if n <= options["factor"])
    ]
    (output / "curve.json").write_text(json.dumps(points, indent=2) + "\n")
    draw(points, PICTURE)
    show(points)


def run(*words: str) -> None:
    """One vla-mot command; ends the script when it fails."""
    code = command_line.main(words)
    if code:
        raise SystemExit(code)


def train(demo: Path, folder: Path, base: int, factor: int) -> None:
    """The demo's own recipe, `factor` times as long, keeping a checkpoint per demo budget."""
    if (folder / "config.yaml").is_file():
        return run("posttrain", f"resume={folder}")
    run(
        "posttrain",
        "experiment=conveyor",
        f"data.root={demo / 'dataset'}",
        f"data.cache={demo / 'frames'}",
        f"output={folder}",
        f"train.steps={base * factor}",
        f"train.save_every={base}",
        "train.keep_checkpoints=10000",  # all: an interrupted run keeps further ones
    )


def point(output: Path, step: int, episodes: int) -> dict:
    """Success of one checkpoint with its interval, and its validation losses."""
    found: dict = {"step": step}
    for arm, changes in ARMS.items():
        place = output / "evaluation" / f"{step:06d}-{arm}"
        if not (place / "results.json").is_file():
            run(
                "evaluate",
                f"checkpoint={output / 'run' / 'checkpoints' / f'{step:06d}' / 'pretrained_model'}",
                f"output={place}",
                f"episodes={episodes}",
                "videos=0",
                *changes,
            )
        success = Evaluation.load(place).arms[0].success
        found[arm] = [success.value, success.low, success.high]
    records = [r for r in read_log(output / "run") if r["kind"] == "validation" and r["step"] <= step]
    return found | {key: records[-1][key] for key in ("action_loss", "foresight_loss", "seconds")}


def draw(points: list[dict], path: Path) -> None:
    """Success and validation losses over the demo's budget."""
    budget = [point["budget"] for point in points]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for arm, label in (("policy", "trained policy"), ("no_history", "history replaced by the present")):
        value, low, high = zip(*(point[arm] for point in points), strict=True)
        left.plot(budget, value, marker="o", label=label)
        left.fill_between(budget, low, high, alpha=0.2)
    left.set(xlabel="training, in demo budgets", ylabel="success (95 % interval)", ylim=(0, 1))
    left.legend(frameon=False)
    right.plot(budget, [point["action_loss"] for point in points], marker="o", label="action")
    right.plot(budget, [point["foresight_loss"] for point in points], marker="o", label="foresight")
    right.set(xlabel="training, in demo budgets", ylabel="validation loss", yscale="log")
    right.legend(frameon=False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)


def show(points: list[dict]) -> None:
    """The table for docs/demo.md."""
    print("| demo budgets | steps | success | history replaced | action loss | foresight loss |")
    print("|---|---|---|---|---|---|")
    for point in points:
        arms = [
            f"{100 * v:.0f} % ({100 * low:.0f}–{100 * high:.0f})" for v, low, high in map(point.get, ARMS)
        ]
        losses = f"{point['action_loss']:.4f} | {point['foresight_loss']:.4f}"
        print(f"| {point['budget']:g} | {point['step']} | {arms[0]} | {arms[1]} | {losses} |")


if __name__ == "__main__":
    run_script(main)

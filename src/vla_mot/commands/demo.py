"""`vla-mot demo`: dataset, training, evaluation and report in one go; what is finished is not done again.

<output>/dataset, frames     the demonstrations, and their decoded frames
<output>/run                 the training run
<output>/policy              a link to its last checkpoint's policy
<output>/evaluation          success of five controllers over the same episodes, foresight, videos
<output>/report.html         all of it, drawn
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_mot.commands import arms, folders, foresight, record, report, runs, simulators, tables
from vla_mot.commands.console import clock, console, show_library_log
from vla_mot.commands.resume import differences
from vla_mot.commands.settings import section
from vla_mot.commands.stages import Stage, Stages, peak_memory_mib
from vla_mot.commands.training_settings import TrainingConfig, training_config
from vla_mot.evaluate.foresight_report import ForesightReport
from vla_mot.evaluate.machine import describe_machine
from vla_mot.evaluate.picture import draw_picture
from vla_mot.evaluate.results import POLICY_HASH, Arm, Evaluation
from vla_mot.hub.manifest import identity
from vla_mot.infer.policy import Policy
from vla_mot.options import at_least, fit
from vla_mot.train.world import World

_TRAINING_GROUPS = ("model", "backbone", "foresight", "embodiment", "data", "train", "sampler")
_LEDE = (
    "A tiny policy, trained from scratch on this machine on demonstrations that it recorded itself, drives a "
    "gripper over a conveyor belt whose speed no single picture shows."
)
_PLACES = ("root", "cache")  # of data: where things lie decides nothing


@dataclass(frozen=True)
class Demo:
    """A demo that was read and found in order."""

    root: Path
    plain: Mapping[str, Any]
    recording: record.RecordConfig
    training: TrainingConfig
    episodes: arms.Episodes
    foresight_samples: int

    @property
    def evaluation(self) -> Path:
        """Where results lie."""
        return self.root / "evaluation"

    @property
    def run(self) -> Path:
        """The training run."""
        return self.root / "run"

    def policy(self) -> Policy:
        """Open the trained policy."""
        return Policy.from_pretrained(folders.find_policy(self.run), device=self.training.train.device)


def run(config: dict[str, Any], overrides: list[str]) -> None:
    """The command."""
    show_library_log()
    demo = _read(config)
    stages = Stages(demo.root)
    chain = _chain(demo, stages)
    for number, stage in enumerate(chain, start=1):
        try:
            stages.run(stage, f"{number}/{len(chain)}")
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"Finished stages and the last checkpoint are kept in {demo.root}; the same command goes on from there."
            ) from None
    _conclude(demo, stages)


def _read(config: dict[str, Any]) -> Demo:
    """Read the whole configuration before anything is done, so that the last stage cannot fail on a typing error."""
    root = fit(Path, "output", config["output"])
    recorded = {
        **config["record"],
        "output": config["data"]["root"],
        "env": config["env"],
        "embodiment": config["embodiment"],
    }
    demo = Demo(
        root=root,
        plain=config,
        recording=section(record.RecordConfig, "record", recorded),
        training=training_config(config),
        episodes=section(arms.Episodes, "evaluate", config["evaluate"]),
        foresight_samples=fit(int, "foresight_samples", config["foresight_samples"]),
    )
    at_least(1, {"foresight_samples": demo.foresight_samples})
    simulators.make_env(config["env"])
    return demo


def _chain(demo: Demo, stages: Stages) -> list[Stage]:
    return [
        _recording(demo),
        _training(demo),
        *(_driving(demo, arm) for arm in arms.DEMO_ARMS),
        Stage(
            "foresight",
            "score the foresight",
            demo.foresight_samples,
            [demo.evaluation / "seen"],
            lambda: _foresee(demo),
        ),
        Stage(
            "report",
            "draw the report",
            None,
            [demo.evaluation / "results.json", demo.root / "report.html"],
            lambda: _report(demo, stages),
        ),
    ]


def _recording(demo: Demo) -> Stage:
    plain = demo.plain
    return Stage(
        "record",
        "record demonstrations",
        [plain["record"], plain["env"], plain["embodiment"]],
        [demo.recording.output],
        lambda: record.run_and_say(demo.recording),
    )


def _training(demo: Demo) -> Stage:
    data = {key: value for key, value in demo.plain["data"].items() if key not in _PLACES}
    return Stage(
        "train",
        "train the policy",
        {name: demo.plain[name] for name in _TRAINING_GROUPS} | {"data": data},
        [demo.run, demo.root / "policy", demo.root / "frames"],
        lambda: _train(demo),
        continues=True,
    )


def _driving(demo: Demo, arm: arms.ArmSpec) -> Stage:
    place = demo.evaluation / "arms" / arm.name
    films = demo.evaluation / "videos" / arm.name
    return Stage(
        f"evaluate-{arm.name}",
        f"drive the robot: {arm.label}",
        [demo.plain["env"], demo.plain["evaluate"]],
        [place, films] if demo.episodes.videos else [place],
        lambda: _evaluate(demo, arm, place, films),
    )


def _train(demo: Demo) -> None:
    """Train, or go on with what an interrupted demo left of the same run."""
    plain = {name: demo.plain[name] for name in _TRAINING_GROUPS} | {
        "output": str(demo.run),
        "init_from": None,
    }
    started = (demo.run / folders.CONFIG_NAME).is_file() and not differences(
        folders.read_config(demo.run), plain
    )
    alone = World(device=demo.training.train.device)
    checkpoint = runs.complete(runs.Run(demo.run, demo.training, plain, resume=started), alone)
    link = demo.root / "policy"
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(checkpoint / "pretrained_model", demo.root))


def _evaluate(demo: Demo, arm: arms.ArmSpec, place: Path, films: Path) -> None:
    films.mkdir(parents=True, exist_ok=True)
    found = arms.run_arm(arm, demo.policy(), demo.plain["env"], demo.episodes, films)
    Evaluation((found,)).save(place)


def _foresee(demo: Demo) -> None:
    data = demo.training.data
    frames = foresight.ForesightData(
        demo.recording.output, demo.foresight_samples, data.cache, data.validation_fraction, data.split_seed
    )
    seen = foresight.score(foresight.open_data(demo.policy(), frames))
    place = demo.evaluation / "seen"
    place.mkdir(parents=True, exist_ok=True)
    if seen is not None:
        seen.save(place)


def _joined(demo: Demo, provenance: Mapping[str, str]) -> Evaluation:
    found: list[Arm] = []
    for arm in arms.DEMO_ARMS:
        found += Evaluation.load(demo.evaluation / "arms" / arm.name).arms
    return Evaluation(tuple(found), ForesightReport.load(demo.evaluation / "seen"), provenance)


def _report(demo: Demo, stages: Stages) -> None:
    provenance = {
        "command": "vla-mot demo",
        "seed": str(demo.training.train.seed),
        POLICY_HASH: identity(folders.find_policy(demo.run)) or "",
        "environment": ", ".join(f"{key}={value}" for key, value in demo.plain["env"].items()),
        "episodes": f"{demo.episodes.episodes} from seed {demo.episodes.seed}",
        **{f"time to {name}": clock(seconds) for name, seconds in stages.seconds.items()},
        "peak memory": f"{max(stages.peak_mib, peak_memory_mib()):.0f} MiB",
        **describe_machine(),
    }
    evaluation = _joined(demo, provenance)
    evaluation.save(demo.evaluation)
    if evaluation.foresight is not None and evaluation.foresight.examples:
        draw_picture(evaluation, demo.root / "picture.png")
    report.write(demo.root, demo.root / "report.html", _LEDE)


def _conclude(demo: Demo, stages: Stages) -> None:
    evaluation = Evaluation.load(demo.evaluation)
    console.print()
    if evaluation.foresight is not None:
        tables.show_foresight(evaluation.foresight)
    tables.show_success(evaluation)
    evaluating = sum(seconds for name, seconds in stages.seconds.items() if name.startswith("evaluate"))
    console.print(
        f"time    record {clock(stages.seconds['record'])}, train {clock(stages.seconds['train'])}, "
        f"evaluate {clock(evaluating)}, in all {clock(sum(stages.seconds.values()))}"
    )
    console.print(f"memory  {stages.peak_mib:.0f} MiB at most")
    console.print(f"policy  {demo.root / 'policy'}")
    console.print(f"report  {demo.root / 'report.html'}")

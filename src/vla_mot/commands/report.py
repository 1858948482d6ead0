"""`vla-mot report`: one self-contained HTML page about a run or a demo."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from vla_mot.commands import folders
from vla_mot.commands.console import console, show_library_log
from vla_mot.commands.settings import section
from vla_mot.errors import ConfigError, nearest
from vla_mot.evaluate.foresight_report import ForesightReport
from vla_mot.evaluate.report import ReportContent, write_report
from vla_mot.evaluate.results import RESULTS_FILE, Arm, Evaluation, find_evaluations
from vla_mot.train.log import read_log, run_pictures

_FILMS = 3  # they are inlined, so each makes the page heavier


@dataclass(frozen=True)
class ReportConfig:
    """See conf/report.yaml."""

    run: Path
    output: Path | None = None


def run(config: dict[str, Any], overrides: list[str]) -> None:
    """The command."""
    show_library_log()
    settings = section(ReportConfig, "", config)
    page = write(settings.run, settings.output or settings.run / "report.html")
    console.print(f"report: {page}")


def write(folder: Path, page: Path, lede: str = "") -> Path:
    """Draw the page of a run (log.jsonl, config.yaml) or a demo (the same in run/), with every evaluation below it.

    Raises ConfigError when there is nothing to draw.
    """
    if not folder.is_dir():
        siblings = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise ConfigError(f"run folder {folder} does not exist.{nearest(folder.name, siblings)}")
    trained = folder / "run" if (folder / "run" / folders.CONFIG_NAME).is_file() else folder
    records = read_log(trained)
    found = collect(folder)
    if not records and found is None:
        raise ConfigError(
            f"{folder} holds nothing to report: no log.jsonl of a run and no {RESULTS_FILE} of an evaluation."
        )
    config = folders.read_config(trained) if (trained / folders.CONFIG_NAME).is_file() else {}
    content = ReportContent(
        title=f"vla_mot: {folder.resolve().name}",
        records=records,
        lede=lede,
        evaluation=found.evaluation if found else None,
        videos=found.films if found else {},
        config={name: _text(part) for name, part in config.items()},
        pictures=run_pictures(trained),
    )
    return write_report(content, page)


@dataclass(frozen=True)
class Collected:
    """Joined evaluations; films: caption → mp4 file of a few episodes of the first arm that was filmed."""

    evaluation: Evaluation
    films: Mapping[str, Path]


def collect(folder: Path) -> Collected | None:
    """Join every evaluation found below `folder` (not those inside another one); None when there is none.

    The trained policy's arm comes first. Arms of the same name, and what they do not have in common of how they were
    made, are told apart by their folder; of several foresights the first is shown, and its folder named.
    """
    arms: dict[str, Arm] = {}
    filmed: dict[str, list[Path]] = {}
    made: dict[str, Mapping[str, str]] = {}
    foresight: dict[str, ForesightReport] = {}
    for place in find_evaluations(folder):
        evaluation, where = Evaluation.load(place), str(place.relative_to(folder))
        made[where] = evaluation.provenance
        if evaluation.foresight is not None:
            foresight[where] = evaluation.foresight
        for arm in evaluation.arms:
            films = _films(place, arm, len(evaluation.arms))
            if arm.name in arms:
                arm = replace(arm, name=f"{arm.name} {where}", label=f"{arm.label} ({where})")
            arms[arm.name], filmed[arm.name] = arm, films
    if not arms:
        return None
    ordered = sorted(arms.values(), key=lambda arm: arm.name != "policy")
    shown = next((arm for arm in ordered if filmed[arm.name]), ordered[0])
    captions = {f"{shown.label}, episode {film.stem}": film for film in filmed[shown.name][:_FILMS]}
    provenance = _made(made)
    if len(made) > 1 and foresight:
        first, *others = foresight
        provenance["foresight"] = first + (f" (not shown: {', '.join(others)})" if others else "")
    return Collected(Evaluation(tuple(ordered), next(iter(foresight.values()), None), provenance), captions)


def _made(told: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """How evaluations were made: once what all say alike, under the name of its folder what they do not."""
    joined: dict[str, str] = {}
    for key in dict.fromkeys(key for facts in told.values() for key in facts):
        values = {where: facts.get(key) for where, facts in told.items()}
        if len(set(values.values())) == 1:
            joined[key] = next(facts[key] for facts in told.values())
        else:
            joined |= {f"{where}: {key}": value for where, value in values.items() if value is not None}
    return joined


def _films(place: Path, arm: Arm, arms: int) -> list[Path]:
    """An arm's films: in a folder of its own where several arms were run (`vla-mot demo`)."""
    films = place / "videos"
    return sorted((films if arms == 1 else films / arm.name).glob("*.mp4"))


def _text(part: Any) -> str:
    return str(yaml.safe_dump(part, sort_keys=False, allow_unicode=True)).removesuffix("...\n").strip()

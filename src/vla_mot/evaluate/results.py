"""What an evaluation found: episodes, arms, comparisons, foresight; saved as JSON, CSV and NPZ, and loaded again.

    results.json   arms with intervals, verdicts and success by task, comparisons, how it was made
    episodes.csv   one row per episode and arm
    foresight.json, foresight.npz   scores, and the example pictures

An *arm* is one controller over all episodes, e.g. the trained policy, or the same with its history replaced.
"""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from vla_mot.errors import ConfigError
from vla_mot.evaluate.foresight_report import ForesightReport
from vla_mot.evaluate.intervals import Interval, PairedDifference, paired_difference, wilson

RESULTS_FILE, EPISODES_FILE = "results.json", "episodes.csv"
POLICY_HASH = "policy hash"  # in `provenance`: which checkpoint was evaluated, wherever it lies


@dataclass(frozen=True)
class EpisodeResult:
    """One episode.

    task: what the environment asked for. instruction: what the controller was told.
    verdict: the environment's own. steps: control steps. seconds: its share of the wall-clock time.
    """

    seed: int
    task: str
    instruction: str
    verdict: str
    success: bool
    steps: int
    seconds: float


@dataclass(frozen=True)
class Arm:
    """One controller over all episodes. name: short, for files and look-ups. label: for people."""

    name: str
    label: str
    episodes: tuple[EpisodeResult, ...]

    @property
    def success(self) -> Interval:
        """Success rate with Wilson's 95 % interval."""
        return wilson(self.successes, len(self.episodes))

    @property
    def verdicts(self) -> dict[str, int]:
        """Verdict → how many episodes, most frequent first."""
        return dict(Counter(episode.verdict for episode in self.episodes).most_common())

    @property
    def successes(self) -> int:
        """How many episodes succeeded."""
        return sum(episode.success for episode in self.episodes)

    def by_scene(self) -> dict[tuple[int, str], EpisodeResult]:
        """Seed and task, which make a scene → its episode."""
        return {(episode.seed, episode.task): episode for episode in self.episodes}

    def by_task(self) -> dict[str, "Arm"]:
        """Task → this controller over its episodes, in alphabetical order."""
        tasks = sorted({episode.task for episode in self.episodes})
        return {
            task: Arm(self.name, task, tuple(episode for episode in self.episodes if episode.task == task))
            for task in tasks
        }

    def summary(self) -> dict[str, Any]:
        """Plain values for `results.json`."""
        return {
            "name": self.name,
            "label": self.label,
            **self._counts(),
            "verdicts": self.verdicts,
            "seconds": round(sum(episode.seconds for episode in self.episodes), 3),
            "tasks": {task: arm._counts() for task, arm in self.by_task().items()},
        }

    def _counts(self) -> dict[str, Any]:
        return {
            "episodes": len(self.episodes),
            "successes": self.successes,
            "success_rate": self.success.to_dict(),
        }


@dataclass(frozen=True)
class Evaluation:
    """Arms over the same seeds, the first of them the one to judge; foresight; and how it was made.

    provenance: plain text values, e.g. command, seed, checkpoint, machine.
    """

    arms: tuple[Arm, ...]
    foresight: ForesightReport | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)

    def comparisons(self) -> dict[str, PairedDifference]:
        """Arm name → the first arm's success minus this arm's, over the episodes that both ran, if there are any."""
        first = set(self.arms[0].by_scene()) if self.arms else set()
        paired = (arm for arm in self.arms[1:] if first & arm.by_scene().keys())
        return {arm.name: compare(self.arms[0], arm) for arm in paired}

    def save(self, folder: Path) -> None:
        """Write everything into `folder`, made if needed."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "arms": [arm.summary() for arm in self.arms],
            "comparisons": {name: paired.to_dict() for name, paired in self.comparisons().items()},
            "provenance": dict(self.provenance),
        }
        (folder / RESULTS_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        _write_episodes(folder / EPISODES_FILE, self.arms)
        if self.foresight is not None:
            self.foresight.save(folder)

    @classmethod
    def load(cls, folder: Path) -> "Evaluation":
        """Read what `save` wrote. Raises ConfigError when there is nothing, or it is damaged."""
        path = folder / RESULTS_FILE
        if not path.is_file():
            raise ConfigError(f"{path} is missing; run `vla-mot evaluate` first.")
        try:
            content = json.loads(path.read_text())
            episodes = _read_episodes(folder / EPISODES_FILE)
            arms = tuple(_read_arm(spec, episodes.get(spec["name"], [])) for spec in content["arms"])
            return cls(arms, ForesightReport.load(folder), content["provenance"])
        except (KeyError, TypeError, ValueError, OSError, BadZipFile) as error:
            raise ConfigError(f"{folder} is damaged ({error!r}); run `vla-mot evaluate` again.") from error


def find_evaluations(folder: Path) -> list[Path]:
    """Every folder below `folder`, or itself, that holds results; not those inside another such folder."""
    found: list[Path] = []
    for path in sorted(folder.rglob(RESULTS_FILE), key=lambda path: (len(path.parts), path)):
        if not any(path.parent.is_relative_to(above) for above in found):
            found.append(path.parent)
    return found


def compare(first: Arm, second: Arm) -> PairedDifference:
    """The first arm's success minus the second's over the episodes (seed and task) that both ran.

    Raises ValueError if there are none.
    """
    mine, theirs = first.by_scene(), second.by_scene()
    both = [scene for scene in mine if scene in theirs]
    return paired_difference(
        [mine[scene].success for scene in both], [theirs[scene].success for scene in both]
    )


def _read_arm(spec: Mapping[str, Any], episodes: list[EpisodeResult]) -> Arm:
    if len(episodes) != spec["episodes"]:
        raise ValueError(
            f"{EPISODES_FILE} has {len(episodes)} of {spec['episodes']} episodes of {spec['name']!r}"
        )
    return Arm(spec["name"], spec["label"], tuple(episodes))


def _write_episodes(path: Path, arms: Sequence[Arm]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", *(f.name for f in fields(EpisodeResult))])
        for arm in arms:
            for episode in arm.episodes:
                writer.writerow([arm.name, *asdict(episode).values()])


def _read_episodes(path: Path) -> dict[str, list[EpisodeResult]]:
    found: dict[str, list[EpisodeResult]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            episode = EpisodeResult(
                seed=int(row["seed"]),
                task=row["task"],
                instruction=row["instruction"],
                verdict=row["verdict"],
                success=row["success"] == "True",
                steps=int(row["steps"]),
                seconds=float(row["seconds"]),
            )
            found.setdefault(row["arm"], []).append(episode)
    return found

"""`vla-mot evaluate open_loop`: what a policy would have done at the moments of recordings, beside what was done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_mot.commands import folders, tables
from vla_mot.commands.console import console, progress, show_library_log
from vla_mot.commands.devices import require_device
from vla_mot.commands.engines import EAGER, described, with_engine
from vla_mot.commands.recordings import Choice, Recording, find_roots, open_recording
from vla_mot.commands.repositories import locate
from vla_mot.commands.settings import section
from vla_mot.errors import ConfigError
from vla_mot.evaluate.machine import describe_machine
from vla_mot.evaluate.open_loop import page, recording
from vla_mot.evaluate.open_loop.results import DatasetResult, OpenLoopResult
from vla_mot.evaluate.open_loop.scorer import DatasetScorer, Subject
from vla_mot.evaluate.results import POLICY_HASH
from vla_mot.flow.solvers import Solver
from vla_mot.hub.describe import sampling
from vla_mot.hub.manifest import identity
from vla_mot.hub.remote import fetch, origin
from vla_mot.infer.policy import Policy
from vla_mot.options import at_least


@dataclass(frozen=True)
class OpenLoopConfig:
    """See conf/open_loop.yaml."""

    checkpoint: Path
    dataset: Path | tuple[Path, ...]
    output: Path
    revision: str | None = None
    robot: str | None = None
    action_mode: str | None = None
    embodiments: tuple[Path, ...] = ()
    episodes: int | None = 10
    held_out: bool = False
    stride: int | None = None
    plots: int = 2
    pictures: bool = True
    rerun: bool = False
    num_steps: int | None = None
    solver: Solver | None = None
    seed: int = 0
    batch_size: int = 16
    engine: Mapping[str, Any] = field(default_factory=lambda: {"kind": EAGER})
    device: str = "cpu"

    def __post_init__(self) -> None:
        require_device("device", self.device)
        given = {"episodes": self.episodes, "stride": self.stride, "batch_size": self.batch_size}
        at_least(1, {name: value for name, value in given.items() if value is not None})
        at_least(0, {"plots": self.plots, "seed": self.seed})
        if self.engine.get("understanding_every", 1) != 1:
            raise ConfigError(
                "engine.understanding_every is for control steps that follow each other; the moments of a recording "
                "are asked about one by one."
            )

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders that were given."""
        return self.dataset if isinstance(self.dataset, tuple) else (self.dataset,)


def run(config: dict[str, Any], overrides: list[str]) -> None:
    """The command. Everything that can fail is opened before anything is computed or written."""
    show_library_log()
    settings = section(OpenLoopConfig, "", config)
    if settings.rerun:
        recording.require_rerun()
    folders.require_unused(settings.output)
    roots = find_roots(settings.roots)
    folder = fetch(locate(settings.checkpoint), revision=settings.revision)
    choice = Choice(settings.episodes, _held_out(folder) if settings.held_out else None)
    opened = _open(settings, folder, roots, choice)
    provenance = _provenance(settings, folder, opened, choice)
    with folders.whole(settings.output) as output:
        result = OpenLoopResult(tuple(_scored(settings, opened)), provenance)
        result.save(output)
        page.write_page(result, output, f"Open loop: {_title(settings)}")
        if settings.rerun:
            recording.write_recording(result, output / recording.RECORDING_FILE, settings.output.name)
    tables.show_open_loop(result)
    console.print(f"page: {settings.output / page.PAGE_FILE}", soft_wrap=True)
    if settings.rerun:
        console.print(f"recording: rerun {settings.output / recording.RECORDING_FILE}", soft_wrap=True)


def _held_out(folder: Path) -> tuple[float, int]:
    split = folders.split_of(folder)
    if split is None:
        raise ConfigError(
            f"held_out=true, but {folder} lies in no run, so no episode is known to be held out: leave it out, or name "
            "the run (checkpoint=<run>)."
        )
    if not split[0]:
        raise ConfigError(
            "held_out=true, but the checkpoint's run held out no episode (validation_fraction=0)."
        )
    return split


def _open(
    settings: OpenLoopConfig, folder: Path, roots: Mapping[str, Path], choice: Choice
) -> list[Recording]:
    """Every dataset of which episodes are chosen, under the policy that is asked; others are named.

    Raises ConfigError when none is left.
    """
    policy = Policy.from_pretrained(
        folder,
        embodiment=settings.robot,
        action_mode=settings.action_mode,
        device=settings.device,
        embodiments=settings.embodiments,
    ).with_sampler(num_steps=settings.num_steps, solver=settings.solver)
    policy = with_engine(policy, settings.engine)
    chosen = settings.robot is not None
    opened = []
    for name, root in roots.items():
        found = open_recording(
            name, root, policy, choice, settings.stride, chosen=chosen, action_mode=settings.action_mode
        )
        if found is None:
            console.print(f"{name} is left out: the run held out no episode of it.", style="yellow")
        else:
            opened.append(found)
    if not opened:
        raise ConfigError(
            "held_out=true, but the run held out no episode of these datasets: one of a single episode trains only."
        )
    return opened


def _scored(settings: OpenLoopConfig, opened: Sequence[Recording]) -> list[DatasetResult]:
    total, done = sum(len(found.moments) for found in opened), 0
    results = []
    with progress("open loop") as advance:
        for found in opened:
            scorer = _scorer(settings, found)
            for seen in found.batches(settings.batch_size):
                scorer.add(seen)
                done += len(seen.episode)
                advance(done, total, found.name)
            results.append(scorer.result())
    return results


def _scorer(settings: OpenLoopConfig, found: Recording) -> DatasetScorer:
    subject = Subject(
        policy=found.policy,
        dataset=found.name,
        fps=found.source.fps,
        offset_frames=found.windows.config.offset_frames,
        stride=settings.stride or found.windows.config.chunk_size,
        episodes=found.episodes,
        draw=settings.seed,
        pictures=settings.pictures,
    )
    return DatasetScorer(
        subject, {episode: found.actions(episode) for episode in found.episodes[: settings.plots]}
    )


def _title(settings: OpenLoopConfig) -> str:
    return " / ".join(Path(settings.checkpoint).parts[-2:])


def _provenance(
    settings: OpenLoopConfig, folder: Path, opened: Sequence[Recording], choice: Choice
) -> dict[str, str]:
    """How the result was made, as text."""
    source, digest = origin(folder), identity(folder)
    policy = opened[0].policy
    first = "all" if settings.episodes is None else f"the first {settings.episodes}"
    robots = dict.fromkeys(str(found.policy.robot) for found in opened)
    return {
        "checkpoint": str(settings.checkpoint),
        **({"commit": source.commit} if source else {}),
        **({POLICY_HASH: digest} if digest else {}),
        "sampler": f"{sampling(policy.spec.sampler)}, noise {settings.seed}",
        **({"engine": described(settings.engine)} if settings.engine["kind"] != EAGER else {}),
        "robots": ", ".join(robots),
        "datasets": ", ".join(str(found.source.root) for found in opened),
        "episodes": f"{first} {_of_which(choice)}",
        "moments": f"every {settings.stride or 'chunk_size'} frames",
        **describe_machine(),
    }


def _of_which(choice: Choice) -> str:
    if choice.split is None:
        return "of each dataset, also such that were trained on (held_out=true: only others)"
    fraction, seed = choice.split
    return f"of those that the run held out (a share of {fraction:g}, split seed {seed})"

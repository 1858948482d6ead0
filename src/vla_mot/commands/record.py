"""`vla-mot data record`: an expert's demonstrations as a LeRobot v3 dataset."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_mot.commands import folders, simulators
from vla_mot.commands.console import Advance, console, progress, show_library_log
from vla_mot.commands.settings import section
from vla_mot.errors import ConfigError, DatasetError
from vla_mot.options import at_least
from vla_mot.robots.embodiment import Embodiment

TASK = "task"  # the key of a frame's instruction
_PATIENCE = 50  # demonstrations that may fail one after another


@dataclass(frozen=True)
class RecordConfig:
    """See conf/record.yaml. env and noise are options of the simulator."""

    output: Path
    env: Mapping[str, Any]
    embodiment: Embodiment
    noise: Mapping[str, Any]
    episodes: int
    seed: int
    static_fraction: float
    repo_id: str | None = None

    def __post_init__(self) -> None:
        at_least(1, {"episodes": self.episodes})
        at_least(0, {"seed": self.seed})
        if not 0 <= self.static_fraction <= 1:
            raise ConfigError(f"static_fraction must lie in [0, 1], got {self.static_fraction}.")


@dataclass(frozen=True)
class Recorded:
    """What was written: frames, and how many demonstrations were kept and dropped, by verdict.

    left_out: what the robot gives and the embodiment does not list.
    """

    frames: int
    verdicts: Mapping[str, int]
    left_out: tuple[str, ...]


def run(config: dict[str, Any], overrides: list[str]) -> None:
    """The command."""
    show_library_log()
    settings = section(RecordConfig, "", config)
    with folders.nothing_kept(settings.output):
        run_and_say(settings)
    console.print(f"dataset: {settings.output}")


def run_and_say(config: RecordConfig) -> None:
    """Record, and say what was kept and what was dropped."""
    recorded = record(config)
    dropped = {verdict: count for verdict, count in recorded.verdicts.items() if verdict != "success"}
    said = ", ".join(f"{count} {verdict}" for verdict, count in dropped.items()) or "none"
    console.print(f"kept {config.episodes} episodes ({recorded.frames:,} frames); dropped: {said}")
    if recorded.left_out:
        name = config.embodiment.name
        console.print(f"embodiment {name} has no {', '.join(recorded.left_out)}: not recorded")


def record(config: RecordConfig) -> Recorded:
    """Record successful demonstrations until there are enough.

    Raises DatasetError when the expert keeps failing; ConfigError when the output is used, for options that the
    simulator does not know, or an embodiment that does not match what it gives.
    """
    from vla_mot.data.recorder import dataset_features, record_dataset

    if config.output.exists():
        folders.require_unused(config.output)
        config.output.rmdir()
    fps = _frame_rate(config.embodiment, config.env)
    simulator, options = simulators.find(config.env)
    demonstrations = simulator.demonstrate(options, config.noise, config.seed, config.static_fraction)
    first = next(demonstrations)
    height, width = _check_embodiment(config, first.frames[0])
    features = dataset_features(config.embodiment, height, width)
    verdicts: Counter[str] = Counter()
    with progress("record") as advance:
        frames = record_dataset(
            root=config.output,
            repo_id=config.repo_id or f"local/{config.output.name}",
            fps=fps,
            features=features,
            episodes=_listed(
                {*features, TASK},
                _successes(_chain(first, demonstrations), config.episodes, verdicts, advance),
            ),
            robot_type=config.embodiment.name,
        )
    left_out = tuple(key for key in first.frames[0] if key not in {*features, TASK})
    return Recorded(frames, dict(verdicts), left_out)


def _frame_rate(embodiment: Embodiment, env: Mapping[str, Any]) -> int:
    """The rate in Hz of the simulator, and so of the recording. Raises ConfigError when the embodiment's is another."""
    robot = simulators.make_env(env)()
    rate = float(robot.metadata["render_fps"])
    robot.close()
    if embodiment.fps != rate:
        stated = "no fps" if embodiment.fps is None else f"{embodiment.fps:g} fps"
        raise ConfigError(
            f"embodiment {embodiment.name!r} states {stated}, but environment {env['name']!r} steps at {rate:g} Hz, "
            f"the rate of its recordings; set embodiment.fps={rate:g}."
        )
    if rate != int(rate):
        raise ConfigError(
            f"environment {env['name']!r} steps at {rate:g} Hz; LeRobot records whole frames per second."
        )
    return int(rate)


def _chain(
    first: simulators.Demonstration, rest: Iterator[simulators.Demonstration]
) -> Iterator[simulators.Demonstration]:
    yield first
    yield from rest


def _successes(
    demonstrations: Iterator[simulators.Demonstration], wanted: int, verdicts: Counter[str], advance: Advance
) -> Iterator[list[simulators.Frame]]:
    """Yield the frames of successful demonstrations only; counts every verdict."""
    failures = 0
    while verdicts["success"] < wanted:
        demonstration = next(demonstrations)
        verdicts[demonstration.verdict] += 1
        failures = 0 if demonstration.verdict == "success" else failures + 1
        if failures >= _PATIENCE:
            raise DatasetError(
                f"the expert failed {failures} times in a row ({dict(verdicts)}); lower noise.*, or check env.*."
            )
        if failures == 0:
            yield demonstration.frames
            advance(verdicts["success"], wanted, f"{verdicts.total() - verdicts['success']} dropped")


def _listed(keys: set[str], episodes: Iterator[list[simulators.Frame]]) -> Iterator[list[simulators.Frame]]:
    """Yield the episodes with only these keys."""
    for frames in episodes:
        yield [{key: value for key, value in frame.items() if key in keys} for frame in frames]


def _check_embodiment(config: RecordConfig, frame: simulators.Frame) -> tuple[int, int]:
    """Return (height, width) of the pictures. Raises ConfigError unless the frame has what the embodiment lists."""
    embodiment = config.embodiment
    listed = {field.key: len(field.names) for field in (*embodiment.state, *embodiment.action)}
    wrong = [f"{key} with {width} dimensions" for key, width in listed.items() if _width(frame, key) != width]
    wrong += [key for _, key in embodiment.present_cameras if key not in frame]
    if wrong:
        given = ", ".join(f"{key} {value.shape}" for key, value in frame.items() if key != TASK)
        options = ", ".join(f"env.{key}={value}" for key, value in config.env.items())
        raise ConfigError(
            f"embodiment {embodiment.name!r} expects {', '.join(wrong)}; the robot gives {given}. "
            f"Choose embodiment=… (conf/embodiment/) and the environment's options, now {options}, to match."
        )
    picture = frame[embodiment.present_cameras[0][1]]
    return picture.shape[0], picture.shape[1]


def _width(frame: simulators.Frame, key: str) -> int | None:
    return frame[key].shape[0] if key in frame else None

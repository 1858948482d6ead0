from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from vla_mot.commands.main import main

LEARNING_RATE = "train.lr=0.003"  # of its own, so that tests do not follow the preset
SMALL = (
    "train.batch_size=4",
    "train.warmup_steps=1",
    "train.log_every=1",
    "train.val_every=4",
    "train.save_every=2",
    "train.val_samples=8",
    "train.val_open_loop=2",
    "train.val_pictures=1",
    "train.log.utilisation=false",
    "train.action_draws=2",
)


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def vla_mot(capsys) -> Callable[..., Outcome]:
    """Run the command in this process."""

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = main(list(map(str, arguments)))
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """Five demonstrations of the conveyor robot, recorded by the command."""
    folder = tmp_path_factory.mktemp("recorded") / "conveyor"
    assert main(["data", "record", f"output={folder}", "episodes=5", "seed=3"]) == 0
    return folder


@pytest.fixture(scope="session")
def frames(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("frames")


@pytest.fixture(scope="session")
def training(dataset, frames) -> tuple[str, ...]:
    """The arguments of a very short training run, but for its output and steps."""
    return (
        "posttrain",
        "experiment=conveyor",
        f"data.root={dataset}",
        f"data.cache={frames}",
        LEARNING_RATE,
        *SMALL,
    )


@pytest.fixture(scope="session")
def trained(training, tmp_path_factory) -> Path:
    """A run of four steps."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    assert main([*training, f"output={folder}", "train.steps=4"]) == 0
    return folder

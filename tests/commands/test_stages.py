from collections.abc import Callable
from pathlib import Path

import pytest

from vla_mot.commands.stages import Stage, Stages
from vla_mot.errors import ConfigError


class Chain:
    """Two stages that append to files, and count how often they worked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.worked: list[str] = []

    def append(self, name: str, fails: bool = False) -> Callable[[], None]:
        def work() -> None:
            self.worked.append(name)
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            with (self.root / name).open("a") as file:
                file.write("x")
            if fails:
                raise KeyboardInterrupt

        return work

    def run(
        self, first: int = 1, second: int = 1, *, fails: bool = False, continues: bool = False
    ) -> list[str]:
        self.worked = []
        stages = Stages(self.root)
        stages.run(Stage("a", "first", first, [self.root / "a"], self.append("a")), "1/2")
        work = self.append("b", fails)
        stages.run(Stage("b", "second", second, [self.root / "b"], work, continues), "2/2")
        return self.worked


@pytest.fixture
def chain(tmp_path) -> Chain:
    return Chain(tmp_path / "chain")


def test_what_is_finished_is_not_done_again(chain):
    assert chain.run() == ["a", "b"]
    assert chain.run() == []


def test_a_change_redoes_its_stage_and_the_later_ones(chain):
    chain.run()
    assert chain.run(second=2) == ["b"]
    assert chain.run(first=2, second=2) == ["a", "b"]
    assert (chain.root / "b").read_text() == "x", "old output was not removed"


def test_output_that_vanished_is_made_again(chain):
    chain.run()
    (chain.root / "b").unlink()
    assert chain.run() == ["b"]


@pytest.mark.parametrize(("continues", "left"), [(False, "x"), (True, "xx")])
def test_an_interrupted_stage_starts_afresh_or_goes_on(chain, continues, left):
    with pytest.raises(KeyboardInterrupt):
        chain.run(fails=True, continues=continues)
    assert chain.run(continues=continues) == ["b"]
    assert (chain.root / "b").read_text() == left
    assert chain.run(continues=continues) == []


def test_the_time_of_an_interrupted_stage_counts(chain):
    with pytest.raises(KeyboardInterrupt):
        chain.run(fails=True, continues=True)
    stages = Stages(chain.root)
    stages.run(Stage("a", "first", 1, [chain.root / "a"], chain.append("a")), "1/2")
    assert stages.seconds["a"] > 0
    assert stages.peak_mib > 10


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="already used by something else"):
        Stages(tmp_path)

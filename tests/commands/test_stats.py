import json
import os
import shutil
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from tests.interrupting import vla_mot_process
from vla_mot.commands import stats
from vla_mot.data.recipe import SplitConfig
from vla_mot.data.source import Source
from vla_mot.data.statistics import compute_statistics
from vla_mot.robots.catalog import find_embodiment
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.statistics_file import load_statistics

CHUNK = 12
CHILDREN = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")


def robot(name: str) -> Embodiment:
    found = find_embodiment(name)
    assert found is not None
    return found


@pytest.fixture
def one(three_datasets, tmp_path) -> tuple[str, ...]:
    """The arguments for the first dataset, but for the output."""
    return (
        "data", "stats", f"data.root={three_datasets / 'conveyor'}", f"chunk_size={CHUNK}", f"kept={tmp_path / 'kept'}",
    )  # fmt: skip


@pytest.fixture
def mixture(three_datasets, tmp_path) -> tuple[str, ...]:
    return (
        "data", "stats", "data=conveyors", f"data.root={three_datasets}", f"chunk_size={CHUNK}",
        f"kept={tmp_path / 'kept'}",
    )  # fmt: skip


def running(pid: str) -> bool:
    """Whether a process is there and not only waits for somebody to note its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def content(path: Path) -> dict:
    return json.loads(path.read_text())


def test_one_dataset_has_the_statistics_that_training_computes(vla_mot, one, three_datasets, tmp_path):
    path = tmp_path / "new" / "stats.json"
    said = vla_mot(*one, f"output={path}")
    assert said.code == 0, said.err
    source = Source.open(three_datasets / "conveyor", robot("conveyor"))
    chosen, held_out = SplitConfig(0.1, 0).episodes(source.num_episodes)
    assert held_out
    expected = compute_statistics(source, CHUNK, "delta", chosen)
    found = load_statistics(path).pick(robot("conveyor"), "delta", CHUNK)
    assert found.to_dict() == expected.to_dict()
    assert f"1 dataset, {len(chosen)} episodes, {found.state.count:,} frames" in said.out
    assert f"{found.action.count:,} of them inside the episodes" in said.out
    assert str(tmp_path) not in path.read_text()


def test_the_table_has_every_dimension_with_its_unit(vla_mot, one, tmp_path):
    said = vla_mot(*one, f"output={tmp_path / 'stats.json'}")
    lines = {line.split("│")[1].strip(): line for line in said.out.splitlines() if line.count("│") > 5}
    body = robot("conveyor")
    names = [f"state {name}" for field in body.state for name in field.names]
    assert {*names, "action x less state", "action y less state", "action aperture"} == set(lines)
    found = load_statistics(tmp_path / "stats.json").pick(body, "delta", CHUNK)
    numbers = [found.state.mean[0], found.state.std[0], found.state.quantiles["q01"][0]]
    cells = [cell.strip() for cell in lines["state x"].split("│")]
    assert cells[2] == "m"
    assert cells[3:6] == [f"{value:.4g}" for value in numbers]


def test_a_mixture_has_statistics_per_robot(vla_mot, mixture, tmp_path):
    path = tmp_path / "stats.json"
    said = vla_mot(*mixture, f"output={path}", "jobs=2")
    assert said.code == 0, said.err
    assert list(content(path)) == ["conveyor", "conveyor_fingers", "conveyor_video"]
    assert "conveyor_video: 1 dataset," in said.out
    assert "; no actions" in said.out
    known = load_statistics(path)
    assert known.pick(robot("conveyor_fingers"), "delta", CHUNK).action.mean.shape == (4,)
    video = known.pick(robot("conveyor_video"), "delta", CHUNK)
    assert video.state.count > 0 and video.state.mean.shape == (0,)
    again = vla_mot(*mixture, f"output={tmp_path / 'again.json'}")
    assert "3 of 3 datasets were counted before" in again.out
    assert content(tmp_path / "again.json") == content(path)


def test_what_one_dataset_left_serves_the_mixture(vla_mot, one, mixture, tmp_path):
    fraction = "data.validation_fraction=0.1"
    assert vla_mot(*one, fraction, f"output={tmp_path / 'one.json'}").code == 0
    said = vla_mot(*mixture, fraction, f"output={tmp_path / 'all.json'}")
    assert "1 of 3 datasets were counted before" in said.out
    alone, among = (
        load_statistics(tmp_path / name).pick(robot("conveyor"), "delta", CHUNK)
        for name in ("one.json", "all.json")
    )
    assert torch.equal(alone.action.std, among.action.std)


def test_an_interrupt_keeps_what_was_counted(vla_mot, mixture, tmp_path, monkeypatch):
    """Ctrl-C once the first dataset is done; the same command then counts two."""
    plain = stats.progress

    class Pressed:
        def __enter__(self):
            return self.press

        def __exit__(self, *error):
            return None

        @staticmethod
        def press(done, total, note=""):
            if note.startswith("1"):
                raise KeyboardInterrupt

    monkeypatch.setattr(stats, "progress", lambda title: Pressed())
    path = tmp_path / "stats.json"
    said = vla_mot(*mixture, f"output={path}")
    assert said.code == 130
    assert f"Nothing was written to {path}" in said.err
    assert f"are kept in {tmp_path / 'kept'}: the same command goes on" in said.err
    assert not path.exists()
    monkeypatch.setattr(stats, "progress", plain)
    assert "1 of 3 datasets were counted before" in vla_mot(*mixture, f"output={path}").out


@pytest.mark.multiprocess
@pytest.mark.skipif(not CHILDREN.exists(), reason="needs the kernel's list of a process's children")
def test_no_process_outlives_a_killed_command(mixture, tmp_path):
    path = tmp_path / "stats.json"
    with vla_mot_process(*mixture, "jobs=2", f"output={path}") as process:
        task = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        children: set[str] = set()
        while len(children) < 2:  # the two, and perhaps multiprocessing's own
            assert process.poll() is None, process.communicate()
            children = set(task.read_text().split())
            time.sleep(0.02)
        process.kill()
        process.wait()
    deadline = time.monotonic() + 60
    while alive := [pid for pid in children if running(pid)]:
        assert time.monotonic() < deadline, f"still there: {alive}"
        time.sleep(0.1)
    assert not path.exists()


def test_one_robot_in_several_datasets_is_one_robot(vla_mot, three_datasets, tmp_path):
    """Datasets of the same robot merge; recordings at different rates are pointed out."""
    both = tmp_path / "both"
    for name in ("first", "second"):
        (both / name).mkdir(parents=True)
        for part in ("data", "videos"):
            (both / name / part).symlink_to(three_datasets / "conveyor" / part)
        (both / name / "meta").mkdir()
        for file in (three_datasets / "conveyor" / "meta").iterdir():
            (both / name / "meta" / file.name).symlink_to(file)
    info = content(both / "second" / "meta" / "info.json") | {"fps": 20}
    (both / "second" / "meta" / "info.json").unlink()
    (both / "second" / "meta" / "info.json").write_text(json.dumps(info))
    words = (
        "data", "stats", "data=mixture", f"data.root={both}", "+data.groups={all: {pattern: '*', weight: 1}}",
        "embodiment=conveyor", "embodiment.fps=null", f"chunk_size={CHUNK}", f"kept={tmp_path / 'kept'}",
    )  # fmt: skip
    said = vla_mot(*words, f"output={tmp_path / 'stats.json'}")
    assert said.code == 0, said.err
    assert "conveyor: 2 datasets, " in said.out
    assert "12 steps are 1.2 s at 10 fps, 0.6 s at 20 fps" in said.out
    numbers = content(tmp_path / "stats.json")["conveyor"]["delta"]
    assert [dataset["name"] for dataset in numbers["computed_on"]["datasets"]] == ["first", "second"]


def test_a_dimension_that_never_changed_is_pointed_out(vla_mot, one, three_datasets, tmp_path):
    still = tmp_path / "still"
    shutil.copytree(three_datasets / "conveyor", still)
    table = pq.read_table(still / "data/chunk-000/file-000.parquet")
    column = table.schema.get_field_index("observation.state")
    states = [[*row[:3], 0.5] for row in table["observation.state"].to_pylist()]
    changed = table.set_column(
        column, table.schema.field(column), pa.array(states, table.schema.types[column])
    )
    pq.write_table(changed, still / "data/chunk-000/file-000.parquet")
    said = vla_mot(*one, f"data.root={still}", f"output={tmp_path / 'stats.json'}")
    assert "never changed, so any other value is far off: state holding\n" in said.out


@pytest.mark.parametrize("word", ["[v1]", "[/b]"])
def test_names_are_no_markup(vla_mot, one, tmp_path, word):
    body = robot("conveyor").to_dict() | {"name": f"belt{word}"}
    body["state"][0]["names"][0] = f"x{word}"
    path, file = tmp_path / f"stats{word.replace('/', '')}.json", tmp_path / "own/embodiment/belt.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump(body))
    said = vla_mot(*one, "--config-dir", tmp_path / "own", "embodiment=belt", f"output='{path}'")
    assert said.code == 0, said.err
    assert f"belt{word}: 1 dataset" in said.out and f"state x{word} " in said.out and str(path) in said.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("chunk_size=0",), "chunk_size must be at least 1, got 0"),
        (("jobs=0",), "jobs must be at least 1, got 0"),
        (("data.action_mode=dleta",), "unknown action mode 'dleta'. Did you mean 'delta'?"),
        (("data.statistics=x.json",), "data.statistics is what this command writes"),
        (("embodiment=conveyor_fingers",), "does not fit embodiment 'conveyor_fingers'"),
    ],
)
def test_a_mistake_is_a_sentence_and_leaves_nothing(vla_mot, one, tmp_path, words, message):
    said = vla_mot(*one, f"output={tmp_path / 'out' / 'stats.json'}", *words)
    assert said.code == 2
    assert message in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_not_overwritten(vla_mot, one, tmp_path):
    path = tmp_path / "stats.json"
    path.write_text("mine")
    said = vla_mot(*one, f"output={path}")
    assert said.code == 2
    assert f"output {path} is already there" in said.err
    assert path.read_text() == "mine"


def test_a_declared_mixture_cannot_be_counted(vla_mot, tmp_path):
    said = vla_mot("data", "stats", "data=a1_pretrain", f"output={tmp_path / 'stats.json'}")
    assert said.code == 2
    assert "give data.root=<folder of the datasets>" in said.err

import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.data.conftest import toy_embodiment
from vla_mot.data.partial_statistics import Chunks
from vla_mot.data.source import Source
from vla_mot.data.statistics import compute_statistics, merge_partials
from vla_mot.data.statistics_jobs import Counted, Task, count_datasets
from vla_mot.errors import ConfigError, DatasetError

CHUNKS = Chunks("delta", 5)
TABLE = "data/chunk-000/file-000.parquet"


def scaled_copy(root: Path, target: Path, factor: float) -> Path:
    """The same recording with every action multiplied, so that it is another dataset."""
    shutil.copytree(root, target)
    table = pq.read_table(target / TABLE)
    actions = np.stack(table["action"].to_pylist()).astype(np.float32) * np.float32(factor)
    column = pa.array(actions.tolist(), table.schema.field("action").type)
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), target / TABLE)
    return target


@pytest.fixture
def tasks(recording, tmp_path) -> list[Task]:
    """Three datasets, of different content and chosen episodes."""
    roots = [scaled_copy(recording.root, tmp_path / name, 1.0 + place) for place, name in enumerate("abc")]
    chosen = [None, (0, 3), (1,)]
    return [
        Task(root.name, root, toy_embodiment(), 60, episodes)
        for root, episodes in zip(roots, chosen, strict=True)
    ]


def merged(counted: Counted) -> dict:
    return merge_partials(toy_embodiment(), CHUNKS, counted.partials).to_dict()


def test_what_is_counted_is_what_was_asked_for(tasks, tmp_path):
    counted = count_datasets(tasks, CHUNKS, tmp_path / "cache")
    assert counted.computed == {"a", "b", "c"}
    for task in tasks:
        alone = compute_statistics(Source.open(task.root, task.embodiment), 5, "delta", task.episodes)
        assert (
            merge_partials(toy_embodiment(), CHUNKS, {task.name: counted.partials[task.name]}).to_dict()
            == alone.to_dict()
        )


def test_one_more_dataset_is_the_only_one_that_is_counted(tasks, tmp_path):
    cache = tmp_path / "cache"
    count_datasets(tasks[:2], CHUNKS, cache)
    counted = count_datasets(tasks, CHUNKS, cache)
    assert counted.computed == {"c"}
    assert merged(counted) == merged(count_datasets(tasks, CHUNKS, tmp_path / "anew"))
    # A copy elsewhere is the same dataset, other windows are not.
    moved = tasks[0].root.rename(tmp_path / "moved")
    again = Task("moved", moved, toy_embodiment(name="renamed"), 60)
    assert count_datasets([again], CHUNKS, cache).computed == set()
    assert count_datasets([again], Chunks("abs", 5), cache).computed == {"moved"}


def test_a_damaged_partial_is_counted_again(tasks, tmp_path, caplog):
    cache = tmp_path / "cache"
    before = merged(count_datasets(tasks, CHUNKS, cache))
    victim = sorted(cache.iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:-9])
    counted = count_datasets(tasks, CHUNKS, cache)
    assert len(counted.computed) == 1
    assert merged(counted) == before
    assert f"{victim} are damaged" in caplog.text


@pytest.mark.multiprocess
def test_the_number_of_processes_does_not_show(tasks, tmp_path):
    one = count_datasets(tasks, CHUNKS, tmp_path / "one", jobs=1)
    seen: list[tuple[int, int]] = []
    two = count_datasets(
        tasks, CHUNKS, tmp_path / "two", 2, lambda done, total, note: seen.append((done, total))
    )
    assert merged(one) == merged(two)
    assert seen[-1][1] == 180
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    for name, part in one.partials.items():
        assert torch.equal(part.action.moments.squares, two.partials[name].action.moments.squares)


def test_the_tables_alone_will_do(tasks, tmp_path):
    whole = count_datasets(tasks, CHUNKS, tmp_path / "cache")
    for task in tasks:
        shutil.rmtree(task.root / "videos")
    found = count_datasets(tasks, CHUNKS, tmp_path / "cache")
    assert found.computed == set(), "videos decide no number"
    anew = count_datasets(tasks, CHUNKS, tmp_path / "anew")
    assert anew.computed == {"a", "b", "c"}
    assert merged(found) == merged(anew) == merged(whole)


def test_another_row_is_another_dataset(tasks, tmp_path):
    cache = tmp_path / "cache"
    count_datasets(tasks[:1], CHUNKS, cache)
    other = Task("b", scaled_copy(tasks[0].root, tmp_path / "b2", 1.5), toy_embodiment(), 60)
    assert count_datasets([other], CHUNKS, cache).computed == {"b"}


def test_progress_counts_every_frame(tasks, tmp_path):
    seen: list[tuple[int, int, str]] = []
    count_datasets(tasks, CHUNKS, tmp_path / "cache", 1, lambda *told: seen.append(told))
    assert seen[0] == (0, 180, "0 of 3 datasets")
    assert seen[-1] == (180, 180, "3 of 3 datasets")
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert [done for done, _, _ in seen].count(180) == 1, "the end was said twice"


@pytest.mark.multiprocess
@pytest.mark.parametrize("jobs", [1, 2])
def test_unreadable_datasets_are_named_and_the_others_kept(tasks, tmp_path, jobs):
    cache = tmp_path / "cache"
    (tasks[0].root / TABLE).write_bytes(b"")
    shutil.rmtree(tasks[1].root)
    with pytest.raises(DatasetError) as caught:
        count_datasets(tasks, CHUNKS, cache, jobs)
    message = str(caught.value)
    assert "2 of 3 datasets cannot be counted" in message
    assert "- a: " in message
    assert f"- b: dataset folder {tasks[1].root} does not exist" in message
    assert count_datasets(tasks[2:], CHUNKS, cache).computed == set()


@pytest.mark.multiprocess
@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interrupt_keeps_what_is_finished(tasks, tmp_path, jobs):
    cache = tmp_path / "cache"

    def press(done: int, total: int, note: str) -> None:
        if not note.startswith("0"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        count_datasets(tasks, CHUNKS, cache, jobs, press)
    kept = {path.name for path in cache.iterdir()}
    assert kept
    counted = count_datasets(tasks, CHUNKS, cache)
    assert len(counted.computed) == 3 - len(kept)


@pytest.mark.multiprocess
def test_a_killed_process_is_said_as_such(tasks, tmp_path):
    def kill_a_child(done: int, total: int, note: str) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(ConfigError, match="was killed, perhaps for want of memory"):
        count_datasets(tasks, CHUNKS, tmp_path / "cache", 2, kill_a_child)


def test_no_process_at_all_is_refused(tasks, tmp_path):
    with pytest.raises(ConfigError, match="jobs must be at least 1, got 0"):
        count_datasets(tasks, CHUNKS, tmp_path, 0)


def test_a_single_dataset_speaks_for_itself(tasks, tmp_path):
    missing = Task("gone", tmp_path / "gone", toy_embodiment(), 60)
    with pytest.raises(DatasetError, match="does not exist"):
        count_datasets([missing], CHUNKS, tmp_path / "cache")
    beyond = Task("a", tasks[0].root, toy_embodiment(), 60, (9,))
    with pytest.raises(ConfigError, match="has 4 episodes; episode 9"):
        count_datasets([beyond], CHUNKS, tmp_path / "cache")

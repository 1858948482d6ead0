"""Batches of several robots, made by one process or several, whole or with holes."""

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.data.mixed import LENGTHS, ROBOTS, VIEW, WEIGHTS, Mixed, record
from tests.data.test_stream import same
from vla_mot.data.opened import OpenDatasets
from vla_mot.data.recipe import SplitConfig
from vla_mot.data.stream import SampleStream
from vla_mot.errors import DatasetError, DataWorkerError
from vla_mot.robots.augmentation import AugmentationConfig


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batch-prefetch"]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Mixed:
    root = tmp_path_factory.mktemp("mixed")
    for name in ROBOTS:
        record(root, name)
    return Mixed(root, tmp_path_factory.mktemp("frames"))


def take(loader, start=0, stop=4, prefetch=0):
    return list(loader.batches(start, stop, prefetch))


def test_a_batch_holds_several_robots_each_with_its_own_widths_and_cameras(mixed):
    batches = take(mixed.loader(), 0, 20)
    names = [entry.name for entry in mixed.mixture.entries]
    drawn = Counter(names[number] for batch in batches for number in batch.origin[:, 0].tolist())
    assert set(drawn) == set(WEIGHTS)
    for batch in batches:
        assert batch.observation.images.shape == (12, 3, 2, 3, *VIEW)
        assert batch.index.tolist() == sorted(batch.index.tolist())
        for row, number in enumerate(batch.origin[:, 0].tolist()):
            robot = ROBOTS[names[number]]
            slots = [slot for slot, _ in robot.present_cameras]
            assert batch.observation.view_mask[row].nonzero().flatten().tolist() == slots
            assert batch.action_mask[row].any(0).sum() == robot.action_dim
            assert not batch.observation.state[row, robot.state_dim :].any()
            assert set(batch.future_mask[row].nonzero().flatten().tolist()) <= set(slots)


def test_history_and_future_count_the_frames_of_each_robot(mixed):
    """0.4 s are 4 frames of the arms and 2 of the wheels."""
    for name, ahead in {"arms": 4, "wheels": 2, "people": 4}.items():
        number = [entry.name for entry in mixed.mixture.entries].index(name)
        windows = mixed.recipe.open(number).training.__getitems__(range(sum(LENGTHS[name])))
        assert windows.future_valid.sum() == sum(max(0, length - ahead) for length in LENGTHS[name])


def test_people_train_foresight_only(mixed):
    for batch in take(mixed.loader(), 0, 20):
        people = batch.origin[:, 0] == [entry.name for entry in mixed.mixture.entries].index("people")
        assert not batch.action_mask[people].any()
        assert batch.action_mask[~people].flatten(1).any(1).all()
        assert not batch.observation.state[people].any()


def test_the_composition_is_counted(mixed):
    loader = mixed.loader()
    batch = take(loader)[0]
    told = loader.composition(batch)
    assert sum(told.values()) == 12 and list(told) == sorted(WEIGHTS)


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (1, 2), (2, 2), (4, 1)])
def test_any_number_of_ranks_and_workers_sees_the_same_stream(mixed, ranks, workers):
    whole = take(mixed.loader(), 3, 6)
    parts = [
        [
            stream.part(step).batch
            for rank in range(ranks)
            for worker in range(workers)
            for stream in [_worker(mixed, ranks, workers, rank, worker)]
        ]
        for step in range(3, 6)
    ]
    for batch, several in zip(whole, parts, strict=True):
        joined = [row for part in several for row in part.index.tolist()]
        assert joined == batch.index.tolist()
        images = torch.cat([part.observation.images for part in several])
        assert torch.equal(images, batch.observation.images)


def _worker(mixed, ranks, workers, rank, worker):
    return SampleStream(mixed.stream(rank=rank, world_size=ranks), worker, workers)


def test_workers_open_only_what_they_are_assigned(mixed):
    for worker in range(4):
        opened = []
        stream = _worker(mixed, 1, 4, 0, worker)
        stream._datasets = replace_opener(stream, opened)
        for step in range(10):
            stream.part(step)
        assigned = mixed.stream().assignment.datasets_of([worker])
        assert set(opened) <= set(assigned)
        assert len(opened) == len(set(opened)), "opened once"


def replace_opener(stream, opened):
    def open_one(number):
        opened.append(number)
        return stream.config.recipe.open(number)

    return OpenDatasets(open_one, 8)


def test_a_dataset_that_gives_way_is_closed(mixed):
    datasets = OpenDatasets(mixed.recipe.open, 1)
    first = datasets.get(0)
    kept = first.training[0].images
    datasets.get(1)
    with pytest.raises(ValueError, match="was closed"):
        _ = first.training[0]
    assert kept.any()


def test_how_many_datasets_are_open_changes_no_sample(mixed):
    many, one = (take(mixed.loader(most_open=most), 0, 8) for most in (256, 1))
    assert all(same(a, b) for a, b in zip(many, one, strict=True))


@pytest.mark.multiprocess
def test_worker_processes_make_the_same_batches(mixed, monkeypatch, caplog, recwarn):
    here = take(mixed.loader(), 2, 7)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    there = take(mixed.loader(workers=2), 2, 7, prefetch=2)
    assert caplog.text.count("data.workers=2 are more than the cores") == 1
    assert not [each for each in recwarn if "worker processes" in str(each.message)], "torch says it again"
    assert len(there) == 5
    assert all(same(a, b) for a, b in zip(here, there, strict=True))
    assert prefetch_threads() == []


@pytest.mark.multiprocess
def test_a_killed_worker_is_a_clear_error(mixed):
    batches = mixed.loader(workers=2).batches(0)
    next(batches)
    victims = children()
    assert victims
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(DataWorkerError, match="a data worker died"):
        for _ in range(50):
            next(batches)
    assert prefetch_threads() == []


@pytest.mark.multiprocess
def test_workers_end_with_a_trainer_that_is_killed(mixed):
    """Nobody else ends them: the fork server that forked them lives as long as they do."""
    trainer = multiprocessing.get_context("spawn").Process(target=_train, args=(mixed.loader(workers=2),))
    trainer.start()
    assert wait_until(lambda: len(children(trainer.pid)) == 2, seconds=120)
    workers = children(trainer.pid)
    trainer.kill()
    trainer.join()
    assert wait_until(lambda: not any(alive(pid) for pid in workers), seconds=30)


def _train(loader) -> None:
    for _ in loader.batches(0):
        time.sleep(0.1)


def wait_until(true, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.1)
    return true()


def alive(pid: int) -> bool:
    """False for a process that ended and was not asked for its status yet, too."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(me: int | None = None) -> list[int]:
    """The data workers: grandchildren of a process through its fork server."""
    me, found = me or os.getpid(), []
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    parents[int(entry)] = int(file.read().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    servers = [pid for pid, parent in parents.items() if parent == me]
    found = [pid for pid, parent in parents.items() if parent in servers]
    return found


@pytest.fixture
def broken(mixed, tmp_path) -> Mixed:
    """A copy of the mixture and an empty cache, to be damaged."""
    root = tmp_path / "datasets"
    shutil.copytree(mixed.root, root)
    copy = Mixed(root, tmp_path / "frames")
    recipe = replace(copy.recipe, frames=replace(copy.recipe.frames, store="video"), tolerant=True)
    object.__setattr__(copy, "recipe", recipe)
    return copy


def video(mixed: Mixed, name: str):
    return sorted((mixed.root / name / "videos").rglob("*.mp4"))[0]


def test_a_broken_video_is_fatal_unless_it_may_be_skipped(broken):
    path = video(broken, "wheels")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DatasetError, match="wheels"):
        take(broken.loader(), 0, 10)
    loader = broken.loader(skip_broken=8)
    batches = take(loader, 0, 10)
    assert all(batch.batch_size == 12 for batch in batches)
    number = [entry.name for entry in broken.mixture.entries].index("wheels")
    assert {fault.dataset for fault in loader.faults} == {number}
    assert all(number not in batch.origin[:, 0].tolist() for batch in batches)
    again = take(broken.loader(skip_broken=8), 5, 10)
    assert all(same(a, b) for a, b in zip(batches[5:], again, strict=True)), "resumed with the same holes"


def test_more_broken_places_than_the_budget_are_named(broken):
    for name in ("wheels", "people"):
        path = video(broken, name)
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"data.skip_broken allows 1:\n(.*\n)*.*(wheels|people)"):
        take(broken.loader(skip_broken=1), 0, 20)


def test_a_dataset_without_its_tables_is_skipped_whole(broken):
    for path in (broken.root / "wheels" / "data").rglob("*.parquet"):
        path.write_bytes(b"PAR1")
    loader = broken.loader(skip_broken=1)
    assert len(take(loader, 0, 10)) == 10
    assert [fault.episode for fault in loader.faults] == [None]


def test_augmentation_changes_training_pictures_alike_on_any_worker(mixed):
    changes = AugmentationConfig(brightness=0.3, hue=0.1, crop=0.8)
    recipe = replace(mixed.recipe, augmentation=changes, split=SplitConfig(0.4))
    plain = replace(mixed.recipe, split=SplitConfig(0.4))
    one = take(mixed.loader(recipe=recipe), 0, 3)
    for step, batch in enumerate(one):
        parts = [SampleStream(mixed.stream(recipe=recipe), worker, 4).part(step).batch for worker in range(4)]
        assert torch.equal(batch.observation.images, torch.cat([part.observation.images for part in parts]))
        assert torch.equal(batch.future, torch.cat([part.future for part in parts]))
    untouched = take(mixed.loader(recipe=plain), 0, 3)
    assert not torch.equal(one[0].observation.images, untouched[0].observation.images)
    assert torch.equal(one[0].actions, untouched[0].actions)
    held_out = [each.open(0).validation.__getitems__([0, 3]).images for each in (recipe, plain)]
    assert torch.equal(*held_out), "what validates stays as it was recorded"


def test_a_damaged_row_is_the_same_hole_for_any_number_of_workers(broken):
    """A worker holds only its own rows; whether the dataset can be read must not depend on which these are."""
    (table,) = (broken.root / "arms" / "data").rglob("*.parquet")
    rows = pq.read_table(table).to_pandas()
    rows.at[len(rows) - 1, "observation.state"] = np.array([np.nan, 0, 0], dtype=np.float32)
    rows.to_parquet(table)
    whole = take(broken.loader(skip_broken=9), 0, 6)
    for workers in (2, 4):
        streams = [
            SampleStream(broken.stream(skip_broken=True), worker, workers) for worker in range(workers)
        ]
        for step, batch in enumerate(whole):
            parts = [stream.part(step).batch for stream in streams]
            assert torch.equal(batch.origin, torch.cat([part.origin for part in parts]))


def test_a_system_that_does_not_tell_which_cores_may_be_used(mixed, monkeypatch):
    """As macOS."""
    monkeypatch.delattr(os, "sched_getaffinity")
    assert next(mixed.loader(workers=0).batches(0, 1)).batch_size

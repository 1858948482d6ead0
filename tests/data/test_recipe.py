"""A worker opens no more of a dataset than it draws from, and draws the same."""

import shutil
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.conftest import SIZE, square
from tests.data.mixed import VIEW, tokenize
from tests.data.test_stream import same
from vla_mot.data.assignment import Piece, assign_exact, rows
from vla_mot.data.frames import FramesConfig
from vla_mot.data.mixture import resolve_mixture
from vla_mot.data.mixture_config import MixtureConfig
from vla_mot.data.recipe import Recipe, SplitConfig
from vla_mot.data.recorder import dataset_features, record_dataset
from vla_mot.data.source import Source
from vla_mot.data.statistics import compute_statistics
from vla_mot.data.stream import SampleStream, StreamConfig
from vla_mot.data.windows import WindowConfig
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.processor import Processor
from vla_mot.robots.robot import Robot

LENGTHS = tuple(3 + (7 * i) % 11 for i in range(24))  # 3 to 13 frames
FRAMES, SHARDS = sum(LENGTHS), 12
CAMERA = "observation.images.front"
ROBOT = Embodiment.from_dict(
    {
        "name": "many",
        "fps": 10,
        "state": [{"key": "observation.state", "names": ["x", "y"], "units": ["m"] * 2}],
        "action": [{"key": "action", "names": ["x", "y"], "units": ["m"] * 2}],
        "cameras": [CAMERA],
    }
)


def episodes() -> Iterator[list[dict]]:
    random = np.random.default_rng(3)
    for number, length in enumerate(LENGTHS):
        yield [
            {
                CAMERA: square(time, number),
                "observation.state": random.normal(size=2).astype(np.float32),
                "action": random.normal(size=2).astype(np.float32),
                "task": f"task {number % 5}",
            }
            for time in range(length)
        ]


def in_files(root, episodes_each: tuple[int, ...], joined: bool) -> None:
    """Lay the table out in files of so many episodes; joined: with one row group each, not one for every episode."""
    first = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(first)
    file = np.repeat(np.arange(len(episodes_each)), episodes_each)
    for number in range(len(episodes_each)):
        with pq.ParquetWriter(first.with_name(f"file-{number:03d}.parquet"), table.schema) as writer:
            mine = pa.array(np.isin(np.asarray(table["episode_index"]), np.flatnonzero(file == number)))
            part = table.filter(mine).combine_chunks()
            groups = [part] if joined else [
                part.filter(pa.array(np.asarray(part["episode_index"]) == episode))
                for episode in np.flatnonzero(file == number)
            ]  # fmt: skip
            for group in groups:
                writer.write_table(group)
    listed = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(listed)
    place = table.column_names.index("data/file_index")
    pq.write_table(table.set_column(place, "data/file_index", pa.array(file)), listed)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("many") / "many"
    record_dataset(root, "tests/many", 10, dataset_features(ROBOT, SIZE, SIZE), episodes())
    in_files(root, (5, 1, 12, 6), joined=False)
    return root


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return FramesConfig(folder=tmp_path_factory.mktemp("frames"))


@pytest.fixture(scope="module", params=[0.0, 0.3], ids=["all train", "some validate"])
def recipe(root, frames, request) -> Recipe:
    mixture = resolve_mixture(MixtureConfig(root, embodiment=ROBOT))
    robot = Robot(ROBOT, compute_statistics(Source.open(root, ROBOT), 4, "abs"))
    processor = Processor(robot, tokenize, VIEW, 2, 2)
    split = SplitConfig(request.param)
    return Recipe(mixture.entries, (WindowConfig(4, 3, VIEW),), {"many": processor}, frames, split)


def bytes_held(source: Source) -> int:
    tensors = (source.state, source.action, source.timestamp, source.task_index)
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def streams(recipe: Recipe, workers: int, **options) -> list[SampleStream]:
    assignment = assign_exact([1.0], [1.0], ["many"], SHARDS)
    config = StreamConfig(recipe, assignment, 24, seed=5, **options)
    return [SampleStream(config, worker, workers) for worker in range(workers)]


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 6, 12])
def test_every_worker_draws_what_one_would_and_holds_its_share(recipe, workers):
    (alone,), parts = streams(recipe, 1), streams(recipe, workers)
    for step in range(20):  # two epochs and more
        whole = alone.part(step).batch
        each = 24 // workers
        for number, part in enumerate(parts):
            assert same(part.part(step).batch, whole[number * each : (number + 1) * each])
    sources = [part._datasets.get(0).source for part in parts]
    every, longest = bytes_held(alone._datasets.get(0).source), max(LENGTHS)
    row = every / FRAMES
    if not recipe.split.fraction:  # held-out episodes between the others are held with them
        assert max(map(bytes_held, sources)) <= every / workers + 2 * (longest - 1) * row
    assert sum(map(bytes_held, sources)) <= every + 2 * (workers - 1) * longest * row
    assert {source.num_frames for source in sources} == {FRAMES}


def test_ranks_share_like_workers(recipe):
    (alone,) = streams(recipe, 1)
    for rank in range(3):
        for number, part in enumerate(streams(recipe, 2, rank=rank, world_size=3)):
            start = 8 * rank + 4 * number
            assert same(part.part(7).batch, alone.part(7).batch[start : start + 4])
            assert len(part._datasets.get(0).source.held) < FRAMES / 2


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.floats(0, 1), min_size=2, max_size=6).map(sorted),
    fraction=st.sampled_from([0, 0.2, 0.6]),
)
def test_any_pieces_are_held(root, frames, cuts, fraction):
    mixture = resolve_mixture(MixtureConfig(root, embodiment=ROBOT))
    recipe = Recipe(mixture.entries, (WindowConfig(4, 3, VIEW),), {}, frames, SplitConfig(fraction))
    pieces = [Piece(0, a, b, 1.0) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    part, whole = recipe.open(0, within=pieces), recipe.open(0)
    for piece in pieces:
        wanted = rows(piece, len(whole.training))
        a, b = part.training.__getitems__(wanted), whole.training.__getitems__(wanted)
        assert torch.equal(a.actions, b.actions) and torch.equal(a.state, b.state)
        assert torch.equal(a.origin, b.origin) and a.tasks == b.tasks
    starts, ends = part.source.bounds.unbind(1)
    assert part.source.held.start in starts and part.source.held.stop in ends
    drawn = np.concatenate([whole.training.frames[list(rows(p, len(whole.training)))] for p in pieces])
    longest = max(LENGTHS)
    assert drawn.min() - longest < part.source.held.start <= drawn.min()
    assert drawn.max() < part.source.held.stop <= drawn.max() + longest


def test_what_was_not_assigned_is_not_there(recipe):
    part = recipe.open(0, within=[Piece(0, 0.0, 0.1, 1.0)])
    with pytest.raises(AssertionError, match="are held"):
        part.training[len(part.training) - 1]
    if part.validation is not None:
        with pytest.raises(AssertionError, match="are held"):
            part.validation[len(part.validation) - 1]


@pytest.mark.parametrize("joined", [False, True])
def test_the_layout_of_the_tables_changes_no_sample(recipe, root, tmp_path, joined):
    other = shutil.copytree(root, tmp_path / "many")
    for path in (other / "data/chunk-000").glob("*.parquet"):
        path.unlink()
    table = pa.concat_tables([pq.read_table(path) for path in sorted((root / "data").rglob("*.parquet"))])
    pq.write_table(table, other / "data/chunk-000/file-000.parquet")
    in_files(other, (1, 2, 20, 1), joined)
    moved = replace(recipe, entries=tuple(replace(entry, root=other) for entry in recipe.entries))
    for a, b in zip(streams(recipe, 3), streams(moved, 3), strict=True):
        assert same(a.part(2).batch, b.part(2).batch)
        assert a._datasets.get(0).source.held == b._datasets.get(0).source.held

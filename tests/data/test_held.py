"""A dataset of which only some frames are held."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.conftest import GRIPPER, HEAD, LENGTHS, SIZE, VIEW, toy_embodiment
from vla_mot.data.frame_cache import FrameCache
from vla_mot.data.recorder import dataset_features, record_dataset
from vla_mot.data.source import Source
from vla_mot.data.statistics import compute_statistics
from vla_mot.data.tables import read_columns, read_part
from vla_mot.errors import DatasetError

TABLE = "data/chunk-000/file-000.parquet"
PART = range(20, 53)  # the second episode and the third
ROWS = ("state", "action", "timestamp", "task_index")


def opened(root, frames: range, **options) -> Source:
    return Source.open(root, toy_embodiment(), keep=lambda bounds: frames, **options)


@pytest.fixture
def copied(recording, tmp_path):
    return shutil.copytree(recording.root, tmp_path / "copied")


def corrupt(root, frame: int, **columns) -> None:
    """Write other values into one row, and leave the row groups as they are."""
    with pq.ParquetFile(root / TABLE) as file:
        groups = [file.read_row_group(group) for group in range(file.num_row_groups)]
    table = pa.concat_tables(groups)
    for name, value in columns.items():
        values, place = table.column(name).to_pylist(), table.column_names.index(name)
        values[frame] = value
        table = table.set_column(place, name, pa.array(values, table.schema.field(place).type))
    with pq.ParquetWriter(root / TABLE, table.schema) as writer:
        for start, length in zip(np.cumsum([0, *LENGTHS[:-1]]), LENGTHS, strict=True):
            writer.write_table(table.slice(start, length))


def test_lerobot_writes_a_row_group_for_every_episode(recording):
    """Which is why a part of a dataset costs a part of the reading."""
    metadata = pq.read_metadata(recording.root / TABLE)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == list(LENGTHS)


@pytest.mark.parametrize("frames", [PART, range(0, 60), range(0, 1), range(59, 60), range(7, 41)])
def test_the_rows_that_are_held_are_those_of_the_whole(source, recording, frames):
    part = opened(recording.root, frames)
    assert (part.held, part.num_frames, part.num_episodes) == (frames, 60, len(LENGTHS))
    wanted = torch.arange(frames.start, frames.stop)
    for name in ROWS:
        values = getattr(part, name)
        assert torch.equal(values[part.rows(wanted)], getattr(source, name)[wanted])
        assert values.untyped_storage().nbytes() == values.nbytes  # and nothing beside them
    assert torch.equal(part.bounds, source.bounds)
    assert part.content_hash == source.content_hash
    assert [part.task(frame) for frame in frames] == [source.task(frame) for frame in frames]


def test_what_is_not_held_cannot_be_asked_for(recording):
    part = opened(recording.root, PART)
    for frames in ([19], [20, 53], [[30, 0]]):
        with pytest.raises(AssertionError, match=r"only frames 20 to 52 of .* are held"):
            part.rows(torch.tensor(frames))
    with pytest.raises(AssertionError, match="are held"):
        part.task(53)
    with pytest.raises(AssertionError, match="are held"):
        part.decode(0, HEAD)
    with pytest.raises(AssertionError, match="whole datasets"):
        compute_statistics(part, 5, "delta")
    with pytest.raises(IndexError):
        part.decode_frames(torch.tensor([60]), HEAD)
    assert part.rows(torch.tensor([], dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize("camera", [HEAD, GRIPPER])
def test_frames_that_are_held_are_decoded_like_the_whole(source, recording, camera):
    part, frames = opened(recording.root, PART), torch.tensor([52, 20, 33, 32, 20])
    assert torch.equal(part.decode_frames(frames, camera), source.decode_frames(frames, camera))
    assert torch.equal(part.decode(2, camera), source.decode(2, camera))


def test_pictures_in_tables_need_no_rows(recording, tmp_path):
    features = dataset_features(toy_embodiment(), SIZE, SIZE)
    features |= {key: {**features[key], "dtype": "image"} for key in (HEAD, GRIPPER)}
    record_dataset(tmp_path / "images", "tests/images", 10, features, recording.episodes)
    decoded = opened(tmp_path / "images", PART).decode_frames(torch.tensor([40, 25]), HEAD)
    np.testing.assert_array_equal(decoded.permute(0, 2, 3, 1), recording.column(HEAD)[[40, 25]])


def test_a_cache_is_built_from_the_whole(source, recording, cache, tmp_path):
    built = FrameCache.open(opened(recording.root, PART), VIEW, tmp_path)
    assert torch.equal(built.gather(torch.arange(60)), cache.gather(torch.arange(60)))
    found = FrameCache.open(source, VIEW, tmp_path)
    assert (found.shape, len(list(tmp_path.glob("*/frames.u8")))) == (built.shape, 1)


def test_the_whole_of_a_part_is_what_was_opened(source, recording, copied):
    assert source.whole() is source
    next((copied / "videos" / HEAD).rglob("*.mp4")).unlink()
    part = opened(copied, PART, missing="report", decoder="pyav")
    whole = part.whole()
    assert (whole.held, whole.missing, whole.tolerant) == (range(60), part.missing, True)
    assert (whole.pictures.decoder, whole.embodiment) == ("pyav", part.embodiment)
    assert torch.equal(whole.action, source.action)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"action": [1.0, float("nan"), 0.0]}, "feature 'action' of {} is NaN or infinite at frame 35"),
        ({"task_index": 7}, "frame 35 has instruction number 7"),
        ({"index": 36}, "row 35 of its tables should be frame 35 of episode 2, and says 36 of 2"),
        ({"episode_index": 1}, "row 35 of its tables should be frame 35 of episode 2, and says 35 of 1"),
    ],
)
def test_what_is_wrong_is_found_where_it_is_held(copied, columns, message):
    corrupt(copied, 35, **columns)
    with pytest.raises(DatasetError) as caught:
        opened(copied, PART)
    assert message.format(copied) in str(caught.value)
    assert opened(copied, range(0, 33)).held == range(33)


def test_rows_that_are_missing_are_missed_by_everyone(copied):
    pq.write_table(pq.read_table(copied / TABLE).slice(0, 58), copied / TABLE)
    with pytest.raises(DatasetError, match=r"its tables hold 58 frames, its meta/info\.json says 60"):
        opened(copied, range(0, 20))


def test_a_torn_table_is_named_though_nothing_of_it_is_held(copied):
    torn = copied / TABLE.replace("file-000", "file-001")
    torn.write_bytes((copied / TABLE).read_bytes()[:-9])
    with pytest.raises(DatasetError, match=r"data/chunk-000/file-001\.parquet is not readable"):
        opened(copied, range(0, 20))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


@settings(max_examples=60, deadline=None)
@given(
    files=st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=1, max_size=5).filter(any),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_any_layout_of_files_and_row_groups_is_one_table(folder, files, cut):
    """files: the row groups of each, by their rows; cut: which part is read."""
    names, start = ("number", "pair", "flag"), 0
    for path in folder.glob("*.parquet"):
        path.unlink()
    for number, groups in enumerate(files):
        rows = np.arange(start, start + sum(groups))
        start += sum(groups)
        pair = pa.FixedSizeListArray.from_arrays(pa.array(np.stack([rows, -rows], 1).ravel()), 2)
        table = pa.table({"number": rows, "pair": pair, "flag": rows % 3 == 0, "other": rows})
        with pq.ParquetWriter(folder / f"{number:03d}.parquet", table.schema) as writer:
            for end, length in zip(np.cumsum(groups), groups, strict=True):
                writer.write_table(table.slice(end - length, length))
    first, last = sorted(round(part * start) for part in cut)
    if first == last:
        first, last = max(0, first - 1), max(1, last)
    whole = read_columns(folder, "*.parquet", names)
    part, stored = read_part(folder, "*.parquet", names, first, last)
    assert stored == start == len(whole["number"])
    np.testing.assert_array_equal(whole["number"], np.arange(start))
    for name in names:
        np.testing.assert_array_equal(part[name], whole[name][first:last])
        assert part[name].dtype == whole[name].dtype

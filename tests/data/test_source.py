import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from tests.data.conftest import GRIPPER, HEAD, LENGTHS, SIZE, toy_embodiment, toy_episodes
from vla_mot.data.recorder import dataset_features, record_dataset
from vla_mot.data.source import Source, Tables
from vla_mot.errors import DatasetError

TABLE = "data/chunk-000/file-000.parquet"


@pytest.fixture
def copied(recording, tmp_path):
    """A copy of the recording that a test may damage."""
    return shutil.copytree(recording.root, tmp_path / "copied")


def edit_info(root, **changes):
    path = root / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refuse(root, embodiment=None) -> str:
    with pytest.raises(DatasetError) as caught:
        Source.open(root, embodiment or toy_embodiment())
    return str(caught.value)


def test_states_actions_and_tasks_are_those_recorded(source, recording):
    state = np.concatenate(
        [recording.column("observation.state"), recording.column("observation.gripper")], axis=1
    )
    np.testing.assert_array_equal(source.state, state)
    np.testing.assert_array_equal(source.action, recording.column("action"))
    assert [source.task(i) for i in range(source.num_frames)] == [
        frame["task"] for episode in recording.episodes for frame in episode
    ]
    assert source.bounds.diff(dim=1).flatten().tolist() == list(LENGTHS)
    assert (source.fps, source.num_episodes, source.cameras) == (10, len(LENGTHS), (HEAD, GRIPPER))
    assert source.has_actions


@pytest.mark.parametrize("camera", [HEAD, GRIPPER])
def test_decoded_episodes_equal_lerobots_own_frames(source, recording, camera):
    dataset = LeRobotDataset("tests/toy", root=recording.root, video_backend="pyav", return_uint8=True)
    decoded = torch.cat([source.decode(episode, camera) for episode in range(source.num_episodes)])
    assert torch.equal(decoded, torch.stack([dataset[i][camera] for i in range(len(dataset))]))


def test_runs_join_to_the_episode(source, monkeypatch):
    whole = source.decode(0, HEAD)
    monkeypatch.setattr("vla_mot.data.pictures._RUN", 7)
    runs = list(source.decode_runs(0, HEAD))
    assert [len(run) for run in runs] == [7, 7, 6]
    assert torch.equal(torch.cat(runs), whole)


def test_a_recording_without_state_and_actions_opens(recording):
    watching = Source.open(recording.root, toy_embodiment(state=[], action=[]))
    assert not watching.has_actions
    assert (watching.state.shape, watching.action.shape) == ((60, 0), (60, 0))


def test_pictures_stored_as_images_are_read_exactly(tmp_path):
    features = dataset_features(toy_embodiment(), SIZE, SIZE)
    features |= {key: {**features[key], "dtype": "image"} for key in (HEAD, GRIPPER)}
    episode = next(toy_episodes())
    record_dataset(tmp_path / "images", "tests/images", 10, features, [episode])
    decoded = Source.open(tmp_path / "images", toy_embodiment()).decode(0, HEAD)
    np.testing.assert_array_equal(decoded.permute(0, 2, 3, 1), np.stack([frame[HEAD] for frame in episode]))


def test_the_hash_follows_the_content_not_the_place(source, copied):
    assert Source.open(copied, toy_embodiment()).content_hash == source.content_hash
    table = pq.read_table(copied / TABLE)
    task = table.column_names.index("task_index")
    changed = table.set_column(task, "task_index", pa.array([0] * table.num_rows, pa.int64()))
    pq.write_table(changed, copied / TABLE)
    assert Source.open(copied, toy_embodiment()).content_hash != source.content_hash


def test_the_tables_are_identified_without_the_videos(copied, recording):
    def identified(root: Path) -> Tables:
        return Tables.identify(root, toy_embodiment())

    before = identified(recording.root)
    shutil.rmtree(copied / "videos")
    assert identified(copied) == before == Tables(before.digest, 4)
    table = pq.read_table(copied / TABLE)
    changed = table.set_column(table.column_names.index("action"), "action", table["observation.state"])
    pq.write_table(changed, copied / TABLE)
    assert identified(copied).digest != before.digest
    (copied / TABLE).unlink()
    with pytest.raises(DatasetError, match=r"is incomplete: data/\*/\*.parquet is missing"):
        identified(copied)


def test_an_edit_of_the_episodes_is_another_identity(copied, recording):
    (places,) = (copied / "meta" / "episodes").rglob("*.parquet")
    table = pq.read_table(places)
    column = table.column_names.index("length")
    pq.write_table(table.set_column(column, "length", pa.array([1] * 4, pa.int64())), places)
    one, other = (Tables.identify(root, toy_embodiment()).digest for root in (copied, recording.root))
    assert one != other


def test_a_missing_folder_names_its_neighbour(recording):
    message = refuse(recording.root.with_name("toi"))
    assert "does not exist" in message
    assert "Did you mean 'toy'?" in message
    assert not recording.root.with_name("toi").exists()


def test_a_folder_that_is_no_dataset_lists_what_it_has(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert "no meta/info.json (found: notes.txt)" in refuse(tmp_path)


def test_an_unreadable_info_file_is_named(copied):
    (copied / "meta" / "info.json").write_text("{")
    assert "info.json is not readable" in refuse(copied)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["fps"], None, "info.json: fps must be a positive number, but is missing"),
        (["fps"], "ten", "info.json: fps must be a positive number, but is 'ten'"),
        (["fps"], 0, "info.json: fps must be a positive number, but is 0"),
        (["features"], None, "info.json: features must be a mapping of features, but is missing"),
        (["features"], [], "info.json: features must be a mapping of features, but is []"),
        (
            ["features", "action"],
            "float32",
            "info.json: features.action.dtype must be a name, but is missing",
        ),
        (
            ["features", "action", "dtype"],
            None,
            "info.json: features.action.dtype must be a name, but is missing",
        ),
        (
            ["features", HEAD, "shape"],
            None,
            f"features.{HEAD}.shape must be a list of whole numbers, but is missing",
        ),
        (
            ["features", "action", "shape"],
            3,
            "features.action.shape must be a list of whole numbers, but is 3",
        ),
    ],
)
def test_what_the_info_file_lacks_is_named(copied, path, value, message):
    file = copied / "meta" / "info.json"
    info = part = json.loads(file.read_text())
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    if value is None:
        del part[path[-1]]
    file.write_text(json.dumps(info))
    assert message in refuse(copied)


def rename(root, names):
    info = json.loads((root / "meta" / "info.json").read_text())
    info["features"]["action"]["names"] = names
    edit_info(root, features=info["features"])


@pytest.mark.parametrize(
    "names", [["y", "x", "gripper"], {"axes": ["y", "x", "gripper"]}, {"x": 1, "y": 0, "gripper": 2}]
)
def test_the_same_names_in_another_order_are_refused(copied, names):
    rename(copied, names)
    message = refuse(copied)
    assert "action feature 'action' has its dimensions in the order y, x, gripper," in message
    assert "the embodiment in the order x, y, gripper" in message


@pytest.mark.parametrize(
    "names", [None, ["a", "b", "c"], {"axes": ["x", "y", "gripper"]}, {"gripper": 2, "y": 1, "x": 0}]
)
def test_no_names_other_names_and_the_same_order_are_fine(copied, names):
    rename(copied, names)
    assert Source.open(copied, toy_embodiment()).num_frames == sum(LENGTHS)


def test_an_old_format_names_the_conversion_command(copied):
    edit_info(copied, codebase_version="v2.1")
    message = refuse(copied)
    assert "has LeRobot format v2.1, v3.0 is needed" in message
    assert f"vla-mot data convert root={copied} output={copied}_v30" in message


def test_a_newer_format_is_refused(copied):
    edit_info(copied, codebase_version="v4.0")
    assert "LeRobot format v4.0" in refuse(copied)


def test_an_empty_dataset_is_refused(copied):
    edit_info(copied, total_frames=0, total_episodes=0)
    assert "has no frames" in refuse(copied)


@pytest.mark.parametrize("gone", ["meta/tasks.parquet", "meta/episodes/*/*.parquet", "data/*/*.parquet"])
def test_an_incomplete_copy_is_named(copied, gone):
    next(copied.glob(gone)).unlink()
    assert f"is incomplete: {gone} is missing" in refuse(copied)


def test_missing_videos_are_named(copied):
    next((copied / "videos" / HEAD).rglob("*.mp4")).unlink()
    assert f"lacks 1 of its files: videos/{HEAD}/chunk-000/file-000.mp4" in refuse(copied)


def test_a_truncated_table_is_named(copied):
    data = (copied / TABLE).read_bytes()
    (copied / TABLE).write_bytes(data[: len(data) // 2])
    assert f"LeRobot cannot open dataset {copied}" in refuse(copied)


@pytest.mark.parametrize("cut", [2, 7])
def test_a_table_with_too_few_rows_is_refused(copied, cut):
    pq.write_table(pq.read_table(copied / TABLE).slice(0, sum(LENGTHS) - cut), copied / TABLE)
    assert f"its tables hold {60 - cut} frames, its meta/info.json says 60." in refuse(copied)


def test_rows_out_of_order_are_refused(copied):
    table = pq.read_table(copied / TABLE)
    pq.write_table(table.take(list(reversed(range(table.num_rows)))), copied / TABLE)
    assert "are not the consecutive frames" in refuse(copied)


def test_a_value_that_is_not_finite_is_located(copied):
    table = pq.read_table(copied / TABLE)
    place = table.column_names.index("action")
    rows = table.column("action").to_pylist()
    rows[30][1] = float("nan")
    pq.write_table(
        table.set_column(place, "action", pa.array(rows, table.schema.field(place).type)), copied / TABLE
    )
    assert "'action'" in (message := refuse(copied))
    assert "at frame 30" in message


def test_a_truncated_video_is_named(copied):
    path = next((copied / "videos" / GRIPPER).rglob("*.mp4"))
    path.write_bytes(path.read_bytes()[:3000])
    source = Source.open(copied, toy_embodiment())
    with pytest.raises(DatasetError, match=f"camera '{GRIPPER}' of episode 3 in {copied} cannot be decoded"):
        source.decode(3, GRIPPER)


def test_everything_that_does_not_fit_is_listed_at_once(recording):
    embodiment = toy_embodiment(
        fps=20,
        cameras=["observation.images.haed"],
        state=[{"key": "observation.state", "names": list("abcd"), "units": ["m"] * 4}],
        action=[{"key": "actions", "names": ["x"], "units": ["m"]}],
    )
    message = refuse(recording.root, embodiment)
    for part in (
        "does not fit embodiment 'toy'",
        f"no camera 'observation.images.haed'. Did you mean '{HEAD}'?",
        "'observation.state' has 3 dimensions (x, y, z), the embodiment lists 4 (a, b, c, d)",
        "no action feature 'actions'. Did you mean 'action'?",
        "it has 10 fps, the embodiment 20",
        f"It has cameras {HEAD}, {GRIPPER}; features observation.state (3), observation.gripper (1), action (3).",
    ):
        assert part in message


def rewrite(path, **columns):
    """Replace columns of a table."""
    table = pq.read_table(path)
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values, table.schema.field(place).type))
    pq.write_table(table, path)


def split_tables(root, rows, episodes):
    """Move what follows `rows` (and `episodes`) into second files, as in a dataset that outgrew its first ones."""
    table = pq.read_table(root / TABLE)
    pq.write_table(table.slice(rows), root / TABLE.replace("file-000", "file-001"))
    pq.write_table(table.slice(0, rows), root / TABLE)
    listed = root / "meta/episodes/chunk-000/file-000.parquet"
    rewrite(listed, **{"data/file_index": [int(i >= episodes) for i in range(len(LENGTHS))]})
    table = pq.read_table(listed)
    pq.write_table(table.slice(episodes), listed.with_name("file-001.parquet"))
    pq.write_table(table.slice(0, episodes), listed)


def test_tables_in_several_files_are_one(source, copied):
    split_tables(copied, sum(LENGTHS[:2]), 2)
    again = Source.open(copied, toy_embodiment())
    for name in ("state", "action", "timestamp", "task_index", "bounds"):
        assert torch.equal(getattr(again, name), getattr(source, name))
    assert torch.equal(again.decode(3, HEAD), source.decode(3, HEAD))


def test_pictures_are_found_in_the_second_table(recording, tmp_path):
    features = dataset_features(toy_embodiment(), SIZE, SIZE)
    features |= {key: {**features[key], "dtype": "image"} for key in (HEAD, GRIPPER)}
    record_dataset(tmp_path / "images", "tests/images", 10, features, recording.episodes)
    split_tables(tmp_path / "images", sum(LENGTHS[:2]), 2)
    decoded = Source.open(tmp_path / "images", toy_embodiment()).decode_frames(torch.tensor([40, 5]), HEAD)
    np.testing.assert_array_equal(decoded.permute(0, 2, 3, 1), recording.column(HEAD)[[40, 5]])


def test_an_episode_list_that_disagrees_is_refused(copied):
    path = copied / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).slice(0, 3), path)
    assert "meta/episodes lists 3 episodes, its meta/info.json says 4" in refuse(copied)


def test_rows_of_another_episode_are_refused(copied):
    rows = [0] * 21 + [1] * 12 + [2] * 20 + [3] * 7
    rewrite(copied / TABLE, episode_index=rows)
    assert "are not the consecutive frames" in (message := refuse(copied))
    assert "row 20 of its tables should be frame 20 of episode 1, and says 20 of 0." in message


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "dataset_from_index",
            [0, 20, 33, 54],
            "the 4 episodes of its meta/episodes do not follow each other",
        ),
        (
            "dataset_from_index",
            [1, 20, 33, 53],
            "the 4 episodes of its meta/episodes do not follow each other",
        ),
        ("dataset_to_index", [20, 33, 53, 61], "meta/episodes lists 61 frames, its meta/info.json says 60"),
        (
            "dataset_to_index",
            [20, 33, 53, 53],
            "the 4 episodes of its meta/episodes do not follow each other",
        ),
    ],
)
def test_episodes_with_other_bounds_are_refused(copied, column, value, message):
    rewrite(copied / "meta/episodes/chunk-000/file-000.parquet", **{column: value})
    assert message in refuse(copied)


def test_an_instruction_that_is_not_listed_is_refused(copied):
    rewrite(copied / TABLE, task_index=[0] * 59 + [2])
    assert "frame 59 has instruction number 2, and meta/tasks.parquet lists 2" in refuse(copied)


def test_a_feature_of_another_width_than_stated_is_refused(copied):
    table = pq.read_table(copied / TABLE)
    wider = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(240, np.float32)), 4)
    pq.write_table(table.set_column(table.column_names.index("action"), "action", wider), copied / TABLE)
    assert "'action' of" in (message := refuse(copied))
    assert "holds 4 numbers a frame, its meta/info.json says 3" in message


def test_a_missing_column_is_named(copied):
    pq.write_table(pq.read_table(copied / TABLE).drop_columns(["action"]), copied / TABLE)
    assert f"LeRobot cannot open dataset {copied}: {TABLE} is not readable" in (message := refuse(copied))
    assert "action" in message


def test_a_source_holds_little_and_no_descriptor(recording):
    before = len(os.listdir("/proc/self/fd"))
    source = Source.open(recording.root, toy_embodiment())
    assert len(os.listdir("/proc/self/fd")) == before
    held = (source.state, source.action, source.timestamp, source.task_index)
    assert sum(tensor.element_size() * tensor[0].numel() for tensor in held) == 4 * (4 + 3 + 1 + 1)


def test_the_hash_is_computed_when_it_is_asked_for(copied, source):
    opened = Source.open(copied, toy_embodiment())
    next((copied / "videos" / HEAD).rglob("*.mp4")).unlink()
    with pytest.raises(DatasetError, match="changed since it was opened"):
        _ = opened.content_hash

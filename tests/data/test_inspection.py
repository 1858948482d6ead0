import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.data.conftest import GRIPPER, HEAD, LENGTHS, TASKS, VIEW, toy_embodiment
from vla_mot.data.inspection import inspect_dataset
from vla_mot.data.preview import look, trace
from vla_mot.data.recorder import dataset_features, record_dataset
from vla_mot.data.statistics import compute_statistics
from vla_mot.errors import DatasetError
from vla_mot.robots.generic import embodiment_yaml
from vla_mot.robots.images import resize_with_pad


@pytest.fixture
def copied(recording, tmp_path) -> Path:
    """The toy dataset, which may be damaged, with its robot's file beside it."""
    (tmp_path / "toy.yaml").write_text(embodiment_yaml(recording.embodiment))
    return Path(shutil.copytree(recording.root, tmp_path / "copied"))


def look_at(root: Path, wanted: str = "toy"):
    return inspect_dataset(root, wanted, [root.parent / "toy.yaml"])


def edit_info(root: Path, **changes) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_features(root: Path, **changes) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    edit_info(root, features={k: v | changes.get(k.split(".")[-1], {}) for k, v in info["features"].items()})


def test_a_dataset_that_fits(copied, recording):
    found = look_at(copied)
    assert (found.problems, found.unused, found.inferred) == ((), (), False)
    assert (found.fps, found.hours) == (10, sum(LENGTHS) / 36000)
    assert found.length_quantiles() == {"shortest": 7, "10 %": 9, "median": 16, "90 %": 20, "longest": 20}
    counts = {(t.task, t.episodes, t.frames) for t in found.tasks}
    assert counts == {(TASKS[0], 2, 40), (TASKS[1], 2, 20)}
    assert found.bytes == sum(path.stat().st_size for path in copied.rglob("*") if path.is_file())


def test_every_dimension_has_its_slot_name_and_range(copied, recording):
    found = look_at(copied)
    placed = [(d.kind, d.slot, d.feature, d.index, d.name, d.unit, d.delta) for d in found.dimensions]
    assert placed[3:6] == [
        ("state", 3, "observation.gripper", 0, "gripper", "m", False),
        ("action", 0, "action", 0, "x", "m", True),
        ("action", 1, "action", 1, "y", "m", True),
    ]
    for d in found.dimensions:
        column = recording.column(d.feature)[:, d.index]
        assert (d.low, d.high) == (float(column.min()), float(column.max()))


def test_cameras_and_their_slots(copied):
    cameras = look_at(copied).cameras
    assert [(c.slot, c.key, c.size) for c in cameras] == [
        (0, HEAD, (48, 48)),
        (1, None, None),
        (2, GRIPPER, (48, 48)),
    ]
    assert [c.stored for c in cameras] == ["h264", "absent", "h264"]


def test_all_problems_are_listed_and_what_fits_is_shown(copied):
    (copied.parent / "toy.yaml").write_text(
        embodiment_yaml(
            toy_embodiment(
                fps=30,
                cameras=[HEAD, "observation.images.wrist", None],
                state=[
                    {"key": "observation.state", "names": ["x", "y"], "units": ["m", "m"]},
                    {"key": "observation.gripper", "names": ["gripper"], "units": ["m"]},
                ],
            )
        )
    )
    found = look_at(copied)
    said = "\n".join(found.problems)
    for part in (
        "no camera 'observation.images.wrist'",
        "'observation.state' has 3 dimensions",
        "has 10 fps, the",
    ):
        assert part in said
    assert len(found.problems) == 3
    assert found.unused == (GRIPPER,)
    assert [c.stored for c in found.cameras] == ["h264", "missing", "absent"]
    seen = {d.feature for d in found.dimensions if d.low is not None}
    assert seen == {"observation.gripper", "action"}
    assert found.source is not None and found.source.cameras == (HEAD,)


def test_dimensions_in_another_order_are_one_problem_and_what_fits_is_shown(copied):
    names = ["y", "x", "gripper"]
    action = {"key": "action", "names": names, "units": ["m"] * 3, "delta": [False] * 3}
    (copied.parent / "toy.yaml").write_text(embodiment_yaml(toy_embodiment(action=[action])))
    found = look_at(copied)
    assert found.problems == (
        "action feature 'action' has its dimensions in the order x, y, gripper, the embodiment in the order "
        "y, x, gripper",
    )
    assert {d.feature for d in found.dimensions if d.low is not None} == {
        "observation.state",
        "observation.gripper",
    }


def test_an_unknown_robot_is_shown_as_inferred(copied):
    edit_info(copied, robot_type="walker")
    found = look_at(copied, "auto")
    assert len(found.problems) == 1 and "unknown robot type 'walker'" in found.problems[0]
    assert found.inferred and found.embodiment.name == "walker"
    assert found.unused == ("observation.gripper",)
    assert found.source is not None


def test_a_dataset_without_cameras_is_shown_too(copied):
    edit_features(copied, head={"dtype": "string"}, gripper={"dtype": "string"})
    found = look_at(copied, "generic")
    assert found.embodiment is None and found.source is None and found.dimensions == ()
    assert found.problems == (next(p for p in found.problems if "no colour camera" in p),)
    assert len(found.lengths) == len(LENGTHS)


def test_missing_videos_and_broken_tables_are_problems(copied):
    next(copied.glob(f"videos/{HEAD}/*/*.mp4")).unlink()
    assert "1 of its videos are missing: videos/observation.images.head" in "".join(look_at(copied).problems)
    next(copied.glob("data/*/*.parquet")).write_bytes(b"broken")
    found = look_at(copied)
    assert "is not readable" in "".join(found.problems)
    assert found.source is None and len(found.dimensions) == 7 and found.dimensions[0].low is None


@pytest.mark.parametrize("key", ["total_frames", "total_episodes", "robot_type", "data_path", "video_path"])
@pytest.mark.parametrize("value", ["many", {"a": -1}, 7, True])
def test_a_hostile_info_is_a_problem_and_never_a_traceback(copied, key, value):
    edit_info(copied, **{key: value})
    found = look_at(copied, "auto")
    assert bool(found.problems) and found.frames >= 0


def test_a_folder_that_is_no_dataset_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        inspect_dataset(tmp_path / "nothing")


def record(root: Path, **columns) -> Path:
    """Two episodes in which the given columns stand."""
    embodiment = toy_embodiment(cameras=[HEAD])
    rng = np.random.default_rng(0)
    state = rng.normal(5.0, 0.1, size=(12, 3)).astype(np.float32)
    plain = {
        "observation.state": state,
        "observation.gripper": rng.normal(size=(12, 1)).astype(np.float32),
        "action": np.concatenate([state[:, :2], rng.normal(size=(12, 1))], axis=1).astype(np.float32),
        HEAD: np.zeros((12, 48, 48, 3), np.uint8),
        "task": ["go"] * 12,
    } | columns
    rows = [{key: values[i] for key, values in plain.items()} for i in range(12)]
    record_dataset(root, "tests/toy", 10, dataset_features(embodiment, 48, 48), [rows[:6], rows[6:]])
    (root.parent / "toy.yaml").write_text(embodiment_yaml(embodiment))
    return root


def test_nothing_is_remarked_where_nothing_is_odd(tmp_path):
    assert look_at(record(tmp_path / "plain")).notes == ()


def test_what_deserves_a_look(tmp_path):
    action = np.random.default_rng(1).normal(size=(12, 3)).astype(np.float32)
    action[:, 2] = 0.5
    root = record(tmp_path / "odd", action=action, task=["go"] * 6 + [" "] * 6)
    path = next(root.glob("data/*/*.parquet"))
    table = pq.read_table(path)
    place = table.column_names.index("timestamp")
    pq.write_table(table.set_column(place, "timestamp", [np.arange(12, dtype=np.float32) % 6 * 0.11]), path)
    still, widened, uneven, unsaid = look_at(root).notes
    assert still == "action dimensions that never change: gripper"
    assert widened.startswith("action minus state varies more than the action itself: x, y.")
    assert "up to 0.05 s away from a steady 10 fps" in uneven
    assert unsaid == "6 frames have no instruction"


def test_a_moment_is_in_the_middle_with_real_history_and_foresight(source):
    for episode, offset in ((0, 5), (0, 9), (1, 6)):
        moment = look(source, episode, offset, VIEW)
        assert moment.history_real and moment.future_real
        assert set(moment.views) == {0, 2}
        start = int(source.bounds[episode, 0])
        times = torch.tensor([start + moment.frame + step * offset for step in (-1, 0, 1)])
        assert moment.views[0].shape == (3, 3, *VIEW)
        assert torch.equal(
            moment.views[0][:, :, :, 4:36], resize_with_pad(source.decode_frames(times, HEAD), 32, 32)
        )
        assert not moment.views[0][..., :4].any(), "padded on the left"


def test_short_episodes_are_flagged(source):
    moment = look(source, 3, 15, VIEW)
    assert (moment.frame, moment.history_real, moment.future_real) == (3, False, False)
    moment = look(source, 3, 6, VIEW)
    assert moment.history_real != moment.future_real


def test_a_chunk_is_traced_as_it_is_learned(source):
    statistics = compute_statistics(source, 5, "delta")
    drawn = trace(source, 1, 10, statistics)
    start = int(source.bounds[1, 0])
    assert drawn.chunk.shape == (3, 3), "three frames are left"
    delta = source.action[start + 11] - torch.cat([source.state[start + 10][:2], torch.zeros(1)])
    assert torch.allclose(statistics.action.unnormalize(drawn.chunk)[1], delta, atol=1e-5)
    assert drawn.state.shape == (13, 4)

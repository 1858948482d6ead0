import io

import numpy as np
import pytest
from PIL import Image

from vla_mot.evaluate.open_loop.recording import APPLICATION, write_recording

experimental = pytest.importorskip("rerun.experimental", reason="the extra `rerun` is not installed")


@pytest.fixture(scope="module")
def written(result, tmp_path_factory):
    return write_recording(result, tmp_path_factory.mktemp("rerun") / "a.rrd", "mine")


@pytest.fixture(scope="module")
def chunks(written) -> dict[str, list]:
    """Entity → its tables, but for those that only say how it looks."""
    found: dict[str, list] = {}
    for chunk in experimental.RrdReader(written).stream():
        if not chunk.is_static:
            found.setdefault(chunk.entity_path, []).append(chunk.to_record_batch())
    return found


def column(tables: list, name: str) -> list:
    return [row for table in tables for row in table.column(name).to_pylist()]


def test_it_is_one_recording_and_how_to_look_at_it(written):
    reader = experimental.RrdReader(written)
    (recording,), (blueprint,) = reader.recordings(), reader.blueprints()
    assert recording.application_id == blueprint.application_id == APPLICATION


def test_two_recordings_of_one_name_are_two(written, result, tmp_path):
    """The viewer merges recordings of one id."""
    other = write_recording(result, tmp_path / "b.rrd", "mine")
    first, second = (experimental.RrdReader(path).recordings()[0] for path in (written, other))
    assert first.recording_id != second.recording_id
    names = [
        name
        for chunk in experimental.RrdReader(other).stream()
        for column in chunk.to_record_batch().schema.names
        if column == "RecordingInfo:name"
        for (name,) in chunk.to_record_batch().column(column).to_pylist()
    ]
    assert names == ["mine"]


def test_actions_are_curves(chunks, result):
    trace = result.datasets[0].traces[0]
    place = "/a/one/episode_000000/actions/lift"
    recorded = chunks[f"{place}/recorded"]
    assert column(recorded, "frame") == list(range(20))
    assert np.ravel(column(recorded, "Scalars:scalars")) == pytest.approx(trace.actions[:, 1])
    seconds = [time.total_seconds() for time in column(recorded, "seconds")]
    assert seconds == pytest.approx(np.arange(20) / 10)


def test_chunks_that_overlap_have_lanes_of_their_own(chunks, result):
    """Of four steps, every four frames: the moments of episode 0 lie at 0, 4 and 8, said to be two frames apart."""
    trace = result.datasets[0].traces[0]
    assert [chunk.frame for chunk in trace.chunks] == [0, 4, 8]
    place = "/a/one/episode_000000/actions/turn"
    first, gap = chunks[f"{place}/predicted_0"], [np.nan]
    assert column(first, "frame") == [0, 1, 2, 3, 4, 8, 9, 10]
    values = [part for number in (0, 2) for part in (trace.chunks[number].predicted[:, 0], gap)]
    drawn = np.ravel(column(first, "Scalars:scalars"))
    assert drawn == pytest.approx(np.concatenate(values), nan_ok=True), "no line leads from chunk to chunk"
    assert column(chunks[f"{place}/held_1"], "frame") == [4, 5, 6, 7, 8]
    assert f"{place}/predicted" not in chunks


def test_cameras_are_pictures_where_they_belong_in_time(chunks, result):
    trace = result.datasets[2].traces[0]
    place = "/film/episode_000000/cameras/head"
    foreseen = chunks[f"{place}/foreseen"]
    assert sorted(column(foreseen, "frame")) == [3, 7, 11], (
        "three frames later, even behind the episode's end"
    )
    assert sorted(column(chunks[f"{place}/recorded"], "frame")) == [0, 3, 4, 7, 8]
    (blob,) = column(foreseen, "EncodedImage:blob")[0]
    with Image.open(io.BytesIO(bytes(blob))) as picture:
        shown = np.asarray(picture).astype(int)
    assert np.abs(shown - trace.moments[0].views["head"]["foresight"]).mean() < 12, "but for JPEG"

import logging

import pytest
import torch

from tests.data.conftest import toy_embodiment
from tests.full_disk import full_disk
from vla_mot.data.partial_cache import read_partial, write_partial
from vla_mot.data.partial_statistics import Chunks, Partial, count_dataset, partial_key
from vla_mot.data.source import Source

CHUNKS = Chunks("delta", 5)


@pytest.fixture(scope="module")
def partial(source) -> Partial:
    return count_dataset(source, CHUNKS, [0, 2])


def assert_equal(one: Partial, other: Partial) -> None:
    assert (one.content_hash, one.key, one.frames, one.episodes) == (
        other.content_hash, other.key, other.frames, other.episodes,
    )  # fmt: skip
    for mine, theirs in ((one.state, other.state), (one.action, other.action)):
        assert torch.equal(mine.knots, theirs.knots)
        assert mine.moments.count == theirs.moments.count
        for name in ("mean", "squares", "min", "max"):
            assert torch.equal(getattr(mine.moments, name), getattr(theirs.moments, name))


def test_a_partial_survives_the_disk_bit_by_bit(partial, tmp_path):
    path = write_partial(tmp_path / "new" / "folder", partial)
    found = read_partial(path.parent, partial.key)
    assert found is not None
    assert_equal(found, partial)
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_size < 100_000
    assert read_partial(path.parent, "0" * 32) is None


def test_a_partial_of_no_dimensions_survives_too(recording, tmp_path):
    watching = Source.open(recording.root, toy_embodiment(state=[], action=[]))
    partial = count_dataset(watching, CHUNKS)
    write_partial(tmp_path, partial)
    found = read_partial(tmp_path, partial.key)
    assert found is not None
    assert_equal(found, partial)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "another", "foreign"])
def test_a_damaged_partial_is_named_and_not_used(partial, source, tmp_path, caplog, damage):
    path = write_partial(tmp_path, partial)
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-100])
    elif damage == "flipped":
        path.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "another":
        other = write_partial(tmp_path, count_dataset(source, CHUNKS, [1]))
        other.replace(path)
    else:
        path.write_text("no tensors")
    with caplog.at_level(logging.WARNING):
        assert read_partial(tmp_path, partial.key) is None
    assert f"{path} are damaged and are computed again" in caplog.text
    write_partial(tmp_path, partial)
    assert read_partial(tmp_path, partial.key) is not None


def test_a_full_disk_leaves_nothing_half_written(partial, tmp_path):
    with full_disk(10_000), pytest.raises(OSError):
        write_partial(tmp_path, partial)
    assert list(tmp_path.iterdir()) == []


def test_the_key_follows_what_decides_the_numbers():
    robot = toy_embodiment()
    key = partial_key("abc", robot, CHUNKS, [0, 1])
    renamed = toy_embodiment(name="other", fps=None, cameras=["observation.images.gripper"])
    assert partial_key("abc", renamed, CHUNKS, [0, 1]) == key
    action = {"key": "action", "names": ["x", "y", "gripper"], "units": ["m"] * 3}
    absolute = toy_embodiment(action=[action])
    assert partial_key("abc", absolute, CHUNKS, [0, 1]) != key
    # What is relative to the state does not matter where nothing is.
    mode = Chunks("abs", 5)
    assert partial_key("abc", absolute, mode, [0, 1]) == partial_key("abc", robot, mode, [0, 1])
    others = {
        partial_key("abd", robot, CHUNKS, [0, 1]),
        partial_key("abc", toy_embodiment(state=[], action=[]), CHUNKS, [0, 1]),
        partial_key("abc", robot, mode, [0, 1]),
        partial_key("abc", robot, Chunks("delta", 6), [0, 1]),
        partial_key("abc", robot, CHUNKS, [0]),
        key,
    }
    assert len(others) == 6

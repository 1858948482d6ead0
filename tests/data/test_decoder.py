import logging
import os
import subprocess
import sys

import pytest

from tests.data.conftest import HEAD, toy_embodiment
from vla_mot.data import decoder as module
from vla_mot.data.decoder import _cut_short, choose_decoder, decode_times
from vla_mot.data.source import Source
from vla_mot.errors import ConfigError


@pytest.fixture
def unloadable(monkeypatch):
    """torchcodec raises when it is loaded, as it does where FFmpeg is not installed."""

    def load(name):
        raise RuntimeError(
            "Could not load libtorchcodec. Likely causes:\n 1. FFmpeg is not properly installed"
        )

    monkeypatch.setattr(module.importlib, "import_module", load)
    module._probe.cache_clear()
    module._problem.cache_clear()
    yield
    module._probe.cache_clear()
    module._problem.cache_clear()


def test_without_torchcodec_pyav_decodes_and_the_reason_is_said_once(unloadable, caplog):
    with caplog.at_level(logging.INFO, "vla_mot"):
        assert choose_decoder() == choose_decoder("auto") == "pyav"
    assert [record.message for record in caplog.records] == [
        "videos are decoded with PyAV, which is slower; torchcodec cannot be loaded: Could not load libtorchcodec; "
        "torchcodec needs the shared libraries of FFmpeg 4 to 8: `apt install ffmpeg` or `conda install ffmpeg`."
    ]


def test_a_decoder_that_was_asked_for_and_cannot_be_loaded_is_refused_at_opening(unloadable, recording):
    with pytest.raises(ConfigError, match=r"decoder 'torchcodec' cannot be loaded: .*apt install ffmpeg"):
        Source.open(recording.root, toy_embodiment(), decoder="torchcodec")


def test_an_unknown_decoder_lists_the_known_ones(recording):
    with pytest.raises(ConfigError, match=r"unknown decoder 'torchcodek'\. Did you mean 'torchcodec'\?"):
        Source.open(recording.root, toy_embodiment(), decoder="torchcodek")


def box(kind: bytes, size: int, *, wide: bool = False) -> bytes:
    head = (1).to_bytes(4) + kind + size.to_bytes(8) if wide else size.to_bytes(4) + kind
    return head.ljust(size, b"\0")


FILE = box(b"ftyp", 24) + box(b"moov", 100)


@pytest.mark.parametrize(
    ("content", "whole"),
    [
        (FILE + box(b"mdat", 64), True),
        (FILE + box(b"mdat", 64, wide=True), True),
        (FILE + bytes(4) + b"mdat" + bytes(50), True),  # to the end of the file, wherever that is
        (FILE + box(b"mdat", 64)[:-1], False),
        (FILE + box(b"mdat", 64, wide=True)[:-1], False),
        (FILE + b"\0\0\0", False),
        (FILE + bytes(4) + b"mda", False),
        (FILE + (3).to_bytes(4) + b"mdat", False),
        (b"\x1aE\xdf\xa3" + bytes(40), True),  # another container: its decoder must tell
        (b"", False),
    ],
)
def test_a_file_is_whole_when_its_boxes_are(tmp_path, content, whole):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert (_cut_short(path, (len(content), path.stat().st_mtime_ns)) == "") == whole


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("name", ["pyav", "torchcodec"])
def test_decoding_many_files_keeps_few_open(recording, tmp_path, name):
    try:
        choose_decoder(name)
    except ConfigError as error:
        pytest.skip(str(error))
    video = next((recording.root / "videos" / HEAD).rglob("*.mp4")).read_bytes()
    before = descriptors()
    for number in range(3 * module._OPEN_VIDEOS):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(video)
        decode_times(path, [0.0], 0.02, name)
    assert descriptors() <= before + module._OPEN_VIDEOS


READER = """
import sys
from pathlib import Path
from vla_mot.data.source import Source
from vla_mot.robots.embodiment import Embodiment
action = [{"key": "action", "names": ["x", "y", "gripper"], "units": ["m"] * 3}]
robot = {"name": "toy", "fps": 10, "state": [], "action": action, "cameras": ["observation.images.head"]}
source = Source.open(Path(sys.argv[1]), Embodiment.from_dict(robot))
source.content_hash
print(sorted({"lerobot", "datasets", "pandas", "av", "torchcodec"} & set(sys.modules)))
"""


def test_opening_imports_no_decoder(recording):
    """What a worker imports is the larger part of its memory."""
    done = subprocess.run([sys.executable, "-c", READER, recording.root], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"

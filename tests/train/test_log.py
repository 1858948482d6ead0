"""Who hears of a run, and what is forgotten when it goes on from a checkpoint."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vla_mot.errors import ConfigError
from vla_mot.options import section
from vla_mot.train.config import LogConfig
from vla_mot.train.log import RunLog, read_log, run_pictures
from vla_mot.train.writers import require_writers

PICTURE = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)


def write(run: Path, steps: range, config: LogConfig | None = None, from_step: int = 0) -> None:
    log = RunLog(run, from_step=from_step, config=config, described={"train": {"lr": 1e-3}})
    for step in steps:
        log.write("train", step, {"loss": 1.0 / step, "machine/data_wait": 0.5})
        log.picture(step, PICTURE + step)
    log.close()


def test_pictures_are_kept_by_step_and_forgotten_behind_the_checkpoint(tmp_path):
    write(tmp_path, range(1, 4))
    assert list(run_pictures(tmp_path)) == [1, 2, 3]
    assert np.array_equal(np.asarray(Image.open(run_pictures(tmp_path)[2])), PICTURE + 2)
    write(tmp_path, range(0), from_step=2)
    assert list(run_pictures(tmp_path)) == [1, 2]
    (tmp_path / "pictures" / ".000009.png").write_bytes(b"cut sh")  # as a kill leaves it
    assert list(run_pictures(tmp_path)) == [1, 2]


def test_tensorboard_has_every_number_and_picture_once_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, range(1, 5))
    time.sleep(1.1)  # TensorBoard orders its files by the second of their making
    write(tmp_path, range(3, 6), from_step=2)
    seen = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    seen.Reload()
    assert [event.step for event in seen.Scalars("train/loss")] == [1, 2, 3, 4, 5]
    assert [event.step for event in seen.Images("foresight")] == [1, 2, 3, 4, 5]
    assert [record["step"] for record in read_log(tmp_path)] == [1, 2, 3, 4, 5]


def test_tensorboard_has_every_number_once_after_a_kill_before_the_first_saved_step(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, range(1, 4))
    time.sleep(1.1)
    write(tmp_path, range(1, 3))
    seen = EventAccumulator(str(tmp_path / "tensorboard"))
    seen.Reload()
    assert [event.step for event in seen.Scalars("train/loss")] == [1, 2]


def test_a_writer_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("vla_mot.train.writers.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"lists trackio, .*pip install 'vla-mot\[tracking\]'"):
        require_writers(LogConfig(writers=("trackio",)))
    require_writers(LogConfig(writers=()))


@pytest.mark.parametrize(
    ("writers", "message"),
    [
        (["tensorbord"], r"unknown value for log.writers\[0\]: 'tensorbord'. Did you mean 'tensorboard'"),
        (["wandb", "wandb"], "lists 'wandb' twice"),
    ],
)
def test_bad_writers_are_named(writers, message):
    with pytest.raises(ConfigError, match=message):
        section(LogConfig, "log", {"writers": writers})


@pytest.mark.parametrize("from_step", [0, 1])
def test_wandb_offline_stays_in_the_runs_folder_and_goes_on_under_its_name(tmp_path, monkeypatch, from_step):
    """Also from step 0, where the first life was killed before it saved a step."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    config = LogConfig(writers=("wandb",), offline=True, project="p", name="n")
    run = tmp_path / "run"
    write(run, range(1, 3), config)
    name = (run / "wandb_id").read_text().strip()
    write(run, range(from_step + 1, 4), config, from_step=from_step)
    assert (run / "wandb_id").read_text().strip() == name
    files = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert {file.name for file in files} == {f"run-{name}.wandb"}
    written = b"".join(file.read_bytes() for file in files)
    assert b"train/loss" in written and b"machine/data_wait" in written
    assert list((run / "wandb").rglob("foresight*.png")), "the picture"
    assert not (tmp_path / "run" / "tensorboard").exists(), "nobody else was asked for"


def test_trackio_keeps_a_run_on_this_machine_and_goes_on_in_it(tmp_path):
    """In the folder of its own that the suite's HF_HOME gives it."""
    trackio = pytest.importorskip("trackio")
    config = LogConfig(writers=("trackio",), project=tmp_path.name.replace("_", "-"))
    write(tmp_path / "run", range(1, 3), config)
    write(tmp_path / "run", range(3, 4), config, from_step=2)
    with closing(sqlite3.connect(trackio.TRACKIO_DIR / f"{config.project}.db")) as opened:
        rows = opened.execute("select run_id, step, cast(metrics as text) from metrics").fetchall()
    losses = [(name, step) for name, step, numbers in rows if "train/loss" in numbers]
    assert sorted(step for _, step in losses) == [1, 2, 3]
    assert len({name for name, _ in losses}) == 1
    assert sum("trackio.image" in numbers for _, _, numbers in rows) == 3


def test_trackio_tells_runs_apart_whose_folders_have_one_name(tmp_path):
    """As those of two sweeps have: 0, 1, …"""
    trackio = pytest.importorskip("trackio")
    config = LogConfig(writers=("trackio",), project=tmp_path.name.replace("_", "-"))
    for sweep in ("a", "b"):
        write(tmp_path / sweep / "0", range(1, 3), config)
    write(tmp_path / "a" / "0", range(3, 4), config, from_step=2)
    with closing(sqlite3.connect(trackio.TRACKIO_DIR / f"{config.project}.db")) as opened:
        rows = opened.execute("select run_name, step, cast(metrics as text) from metrics").fetchall()
    steps: dict[str, list[int]] = {}
    for name, step, numbers in rows:
        if "train/loss" in numbers:
            steps.setdefault(name, []).append(step)
    mine, other = ((tmp_path / sweep / "0" / "trackio_name").read_text().strip() for sweep in ("a", "b"))
    assert {name: sorted(found) for name, found in steps.items()} == {mine: [1, 2, 3], other: [1, 2]}
    assert mine.startswith("0-")

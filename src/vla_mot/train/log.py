"""What a run says: one JSON line per record in `<run>/log.jsonl`, pictures beside it, and the same for `writers`.

A record is `{"step": …, "kind": "train" | "validation", …numbers}`. Resuming drops the records and pictures behind the
checkpoint's step, so that the log of a killed and resumed run reads like that of an uninterrupted one.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vla_mot.errors import CheckpointError
from vla_mot.train.config import LogConfig
from vla_mot.train.writers import open_writers

PICTURES = "pictures"


class RunLog:
    """Appends to `<run>/log.jsonl` and to `<run>/pictures/`, and tells the writers; for the main rank alone.

    from_step: the step that the run goes on from. config: who else is told. described: the run's configuration, for
    those who show it.
    """

    def __init__(
        self,
        run: Path,
        *,
        from_step: int = 0,
        config: LogConfig | None = None,
        described: Mapping[str, Any] | None = None,
    ) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self._run, path = run, run / "log.jsonl"
        kept = [record for record in read_log(run) if record["step"] <= from_step] if from_step else []
        beside = run / ".log.jsonl.unfinished"  # renamed when it is whole: a kill loses no record
        beside.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(beside, path)
        for step, picture in run_pictures(run).items():
            if step > from_step:
                picture.unlink()
        self._file = path.open("a")
        self._writers = open_writers(config or LogConfig(), run, from_step, described or {})

    def write(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """Append one record. Numbers are written as they are; NaN and infinity become strings."""
        record: dict[str, Any] = {"step": step, "kind": kind} | {k: _jsonable(v) for k, v in numbers.items()}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        for writer in self._writers:
            writer.numbers(kind, step, numbers)

    def picture(self, step: int, picture: np.ndarray) -> Path:
        """Keep an `(H, W, 3)` uint8 picture as `<run>/pictures/<step>.png`."""
        folder = self._run / PICTURES
        folder.mkdir(exist_ok=True)
        path, beside = folder / f"{step:06d}.png", folder / f".{step:06d}.png"
        Image.fromarray(picture).save(beside, format="PNG")
        os.replace(beside, path)
        for writer in self._writers:
            writer.picture(step, picture)
        return path

    def close(self) -> None:
        """Flush and close all."""
        self._file.close()
        for writer in self._writers:
            writer.close()


def run_pictures(run: Path) -> dict[int, Path]:
    """Step → picture of a run, in the order of the steps."""
    found = (path for path in (run / PICTURES).glob("*.png") if path.stem.isdecimal())
    return dict(sorted((int(path.stem), path) for path in found))


def read_log(run: Path) -> list[dict[str, Any]]:
    """Read `<run>/log.jsonl`; a last line cut short by a crash is dropped.

    Raises CheckpointError naming any other line that is damaged.
    """
    path = run / "log.jsonl"
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        record = _record(line)
        if record is not None:
            records.append(record)
        elif number < len(lines):
            raise CheckpointError(
                f"{path}, line {number}, is damaged: expected a record with step and kind, got {line[:60]!r}. "
                "Remove that line; the weights do not depend on it."
            )
    return records


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"step", "kind"} <= record.keys() else None


def _jsonable(value: float) -> float | str:
    number = float(value)
    return number if number == number and abs(number) != float("inf") else str(number)

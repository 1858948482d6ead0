"""What a run says: one JSON line per record, and the same numbers for TensorBoard.

A record is `{"step": …, "kind": "train" | "validation", …numbers}`. Resuming drops the records behind the
checkpoint's step, so that the log of a killed and resumed run reads like that of an uninterrupted one.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from vla_mot.errors import CheckpointError


class Scalars(Protocol):
    """The part of TensorBoard's `SummaryWriter` that is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...
    def close(self) -> None: ...


class RunLog:
    """Appends to `<run>/log.jsonl` and to `<run>/tensorboard/`."""

    def __init__(self, run: Path, *, from_step: int = 0) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self._path = run / "log.jsonl"
        kept = [record for record in read_log(run) if record["step"] <= from_step] if from_step else []
        beside = run / ".log.jsonl.unfinished"  # renamed when it is whole: a kill loses no record
        beside.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(beside, self._path)
        self._file = self._path.open("a")
        self._scalars = _tensorboard(run / "tensorboard", from_step)

    def write(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """Append one record. Numbers are written as they are; NaN and infinity become strings."""
        record: dict[str, Any] = {"step": step, "kind": kind} | {k: _jsonable(v) for k, v in numbers.items()}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            self._scalars.add_scalar(f"{kind}/{name}", float(value), step)

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._scalars.close()


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


def _tensorboard(folder: Path, from_step: int) -> Scalars:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=from_step or None)

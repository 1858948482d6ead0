"""The tables of a LeRobot v3 dataset, read straight from its parquet files: only the columns that are needed.

lerobot's own classes go through `datasets`, which copies every table into an arrow file on disk and keeps it mapped:
dozens of times slower, and pretraining opens hundreds of datasets. The order is lerobot's: files by name, rows as
stored.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_mot.errors import DatasetError

Columns = dict[str, np.ndarray]
"""Name of a column → its values, rows first."""


def read_columns(root: Path, pattern: str, names: Sequence[str]) -> Columns:
    """Read the named columns of all parquet files that match, one after the other.

    A column of numbers comes as `(N,)`, one of lists as `(N, W)`, or `(N,)` where W is 1; with the stored dtype.
    Raises DatasetError naming the file that cannot be read, lacks a column, or holds other things than numbers there.
    """
    return read_part(root, pattern, names)[0]


def read_part(
    root: Path, pattern: str, names: Sequence[str], first: int = 0, last: int | None = None
) -> tuple[Columns, int]:
    """Read rows `first` … `last` - 1 (to the end if None) as `read_columns` does, and count the rows of all files.

    Of a file without any of these rows only the footer is read, of others only the row groups that hold them.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    start = 0
    for path in sorted(root.glob(pattern)):
        with _reading(root, path), pq.ParquetFile(path) as file:
            end = start + file.metadata.num_rows
            rows = range(max(first, start) - start, min(end if last is None else last, end) - start)
            if rows:
                table, before = _read_groups(file, names, rows)
                for name in names:
                    parts[name].append(_values(table, name, slice(rows.start - before, rows.stop - before)))
            start = end
    columns = {name: _joined(root, name, parts.pop(name)) for name in names}
    pa.default_memory_pool().release_unused()
    return columns, start


def _read_groups(file: pq.ParquetFile, names: Sequence[str], rows: range) -> tuple[Any, int]:
    """The row groups that hold some of the rows, and how many rows of the file come before them."""
    if len(rows) == file.metadata.num_rows:
        return file.read(columns=list(names), use_threads=False), 0
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    ends = np.cumsum(sizes)
    begin = int(np.searchsorted(ends, rows.start, "right"))
    stop = int(np.searchsorted(ends, rows.stop - 1, "right")) + 1
    table = file.read_row_groups(list(range(begin, stop)), columns=list(names), use_threads=False)
    return table, int(ends[begin]) - sizes[begin]


def read_tasks(root: Path) -> tuple[str, ...]:
    """The instructions, in the order that `task_index` counts. Raises DatasetError when their file is damaged."""
    path = root / "meta" / "tasks.parquet"
    with _reading(root, path), pq.ParquetFile(path) as file:
        table = file.read(use_threads=False)
        index = (table.schema.pandas_metadata or {}).get("index_columns", ())
        name = next((name for name in index if isinstance(name, str)), "task")
        return tuple(str(task) for task in table.column(name).to_pylist())


def read_rows(root: Path, path: Path, name: str, rows: Sequence[int]) -> list[Any]:
    """Values of one column in the given rows (ascending) of one file, touching only the row groups that hold them.

    Raises DatasetError when the file cannot be read, and IndexError when it has fewer rows.
    """
    values: list[Any] = []
    with _reading(root, path), pq.ParquetFile(path) as file:
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            here = [row - start for row in rows if start <= row < end]
            if here:
                column = file.read_row_group(group, columns=[name], use_threads=False).column(name)
                values += column.take(pa.array(here)).to_pylist()
            start = end
    if len(values) != len(rows):
        raise IndexError(f"{path.relative_to(root)} has only {start} rows")
    return values


@contextmanager
def _reading(root: Path, path: Path) -> Iterator[None]:
    """Turn whatever a damaged file causes into a DatasetError that names it."""
    try:
        yield
    except Exception as error:  # parquet's readers raise many kinds for damaged bytes
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DatasetError(
            f"LeRobot cannot open dataset {root}: {path.relative_to(root)} is not readable ({reason}). Copy it again."
        ) from error


def _values(table: Any, name: str, rows: slice) -> np.ndarray:
    """Rows of a column as an array of its own: a view would keep everything alive that was read with it."""
    column = table.column(name).combine_chunks()
    while hasattr(column, "flatten") and hasattr(column.type, "value_type"):
        column = column.flatten()
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    if column.null_count and pa.types.is_floating(column.type):
        column = column.fill_null(float("nan"))  # refused where it is used
    values = np.from_dlpack(column)  # arrow's own way to numpy imports pandas: 40 MiB in every worker
    return (values if len(values) == table.num_rows else values.reshape(table.num_rows, -1))[rows].copy()


def _joined(root: Path, name: str, parts: Sequence[np.ndarray]) -> np.ndarray:
    filled = [part for part in parts if len(part)]
    if len({part.shape[1:] for part in filled}) > 1:
        raise DatasetError(
            f"feature {name!r} of {root} is wider in some files than in others. Copy the dataset again."
        )
    return np.concatenate(filled) if filled else np.empty(0)

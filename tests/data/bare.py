"""Datasets of which only `meta/info.json` says anything: all that resolving a mixture reads."""

import json
from pathlib import Path
from typing import Any

from tests.robots.layouts import so100


def bare_dataset(
    root: Path, frames: int = 100, episodes: int = 10, info: dict[str, Any] | None = None, fps: float = 30
) -> Path:
    """Write one; info: its features and robot, by default a desk arm's."""
    sizes = {"codebase_version": "v3.0", "total_frames": frames, "total_episodes": episodes, "fps": fps}
    for name in (
        "meta/tasks.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-000.parquet",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "meta/info.json").write_text(json.dumps((so100() if info is None else info) | sizes))
    return root

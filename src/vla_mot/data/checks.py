"""What must hold before a folder is read as an embodiment's LeRobot v3 dataset, and what is said when not."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_mot.errors import DatasetError, nearest
from vla_mot.robots.embodiment import Embodiment, Field
from vla_mot.robots.features import dimension_names, feature_width, is_camera


def read_info(root: Path) -> dict[str, Any]:
    """Return `meta/info.json` of a LeRobot v3 dataset.

    Raises DatasetError when the folder is missing, is no LeRobot dataset, has another format, or is empty.
    """
    if not root.is_dir():
        siblings = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
        raise DatasetError(
            f"dataset folder {root} does not exist.{nearest(root.name, siblings)} "
            "Check the path, or record a dataset with `vla-mot data record`."
        )
    path = root / "meta" / "info.json"
    if not path.is_file():
        found = ", ".join(sorted(entry.name for entry in root.iterdir())) or "nothing"
        raise DatasetError(f"{root} is not a LeRobot dataset: it has no meta/info.json (found: {found}).")
    try:
        info = json.loads(path.read_text())
        major = int(str(info["codebase_version"]).removeprefix("v").split(".")[0])
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path} is not readable as LeRobot's dataset information: {error!r}.") from error
    _check_version(root, str(info["codebase_version"]), major)
    _check_content(path, info)
    for needed in ("meta/tasks.parquet", "meta/episodes/*/*.parquet", "data/*/*.parquet"):
        if not any(root.glob(needed)):
            raise DatasetError(f"LeRobot dataset {root} is incomplete: {needed} is missing. Copy it again.")
    if not info.get("total_frames"):
        raise DatasetError(f"LeRobot dataset {root} has no frames. Was its recording interrupted?")
    return info


def _check_version(root: Path, version: str, major: int) -> None:
    if major < 3:
        raise DatasetError(
            f"dataset {root} has LeRobot format {version}, v3.0 is needed. Convert it with\n"
            f"  vla-mot data convert root={root} output={root}_v30"
        )
    if major > 3:
        raise DatasetError(f"dataset {root} has LeRobot format {version}; the installed lerobot reads v3.0.")


def _check_content(path: Path, info: Mapping[str, Any]) -> None:
    """Raise DatasetError unless everything that is read here later has the kind of value that LeRobot writes."""
    if not isinstance(info.get("fps"), int | float) or info["fps"] <= 0:
        raise DatasetError(_lacks(path, "fps", "a positive number", info))
    features = info.get("features")
    if not isinstance(features, Mapping):
        raise DatasetError(_lacks(path, "features", "a mapping of features", info))
    for key, spec in features.items():
        shape = spec.get("shape") if isinstance(spec, Mapping) else None
        if not isinstance(spec, Mapping) or not isinstance(spec.get("dtype"), str):
            raise DatasetError(_lacks(path, f"features.{key}.dtype", "a name", spec))
        if not isinstance(shape, list) or not all(isinstance(size, int) for size in shape):
            raise DatasetError(_lacks(path, f"features.{key}.shape", "a list of whole numbers", spec))


def _lacks(path: Path, key: str, wanted: str, spec: Any) -> str:
    name = key.rpartition(".")[2]
    found = f"is {spec[name]!r}" if isinstance(spec, Mapping) and name in spec else "is missing"
    return f"{path}: {key} must be {wanted}, but {found}. Copy the dataset again, or record it again."


def check_features(root: Path, info: Mapping[str, Any], embodiment: Embodiment) -> None:
    """Raise one DatasetError that lists everything in which a dataset does not fit the embodiment."""
    problems = misfits(info, embodiment)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise DatasetError(
            f"dataset {root} does not fit embodiment {embodiment.name!r}:\n{listed}\n"
            f"It has {_inventory(info['features'])}. Choose the embodiment that recorded it, or fix the YAML in "
            "conf/embodiment/."
        )


def misfits(info: Mapping[str, Any], embodiment: Embodiment) -> list[str]:
    """Everything in which a dataset, by its `meta/info.json`, does not fit the embodiment."""
    features = info["features"]
    problems = [*_camera_problems(features, embodiment), *_vector_problems(features, embodiment)]
    if embodiment.fps is not None and abs(float(info["fps"]) - embodiment.fps) > 1e-6:
        problems.append(f"it has {float(info['fps']):g} fps, the embodiment {embodiment.fps:g}")
    return problems


def _camera_problems(features: Mapping[str, Any], embodiment: Embodiment) -> list[str]:
    cameras = [key for key, spec in features.items() if is_camera(spec)]
    return [
        f"no camera {key!r}.{nearest(key, cameras)}"
        for _, key in embodiment.present_cameras
        if key not in cameras
    ]


def _vector_problems(features: Mapping[str, Any], embodiment: Embodiment) -> list[str]:
    vectors = [key for key, spec in features.items() if not is_camera(spec)]
    problems = []
    for kind, fields in (("state", embodiment.state), ("action", embodiment.action)):
        for field in fields:
            if field.key not in vectors:
                problems.append(f"no {kind} feature {field.key!r}.{nearest(field.key, vectors)}")
            elif (width := feature_width(features[field.key])) != len(field.names):
                problems.append(_width_problem(kind, field, width, features[field.key]))
            elif (names := dimension_names(features[field.key])) != field.names and sorted(names) == sorted(
                field.names
            ):
                problems.append(_order_problem(kind, field, names))
    return problems


def _width_problem(kind: str, field: Field, width: int, spec: Mapping[str, Any]) -> str:
    names = ", ".join(dimension_names(spec)) or "unnamed"
    return (
        f"{kind} feature {field.key!r} has {width} dimensions ({names}), the embodiment lists "
        f"{len(field.names)} ({', '.join(field.names)})"
    )


def _order_problem(kind: str, field: Field, names: Sequence[str]) -> str:
    """Other names may mean the same; the same names in another order are another layout."""
    return (
        f"{kind} feature {field.key!r} has its dimensions in the order {', '.join(names)}, the embodiment in the "
        f"order {', '.join(field.names)}"
    )


def _inventory(features: Mapping[str, Any]) -> str:
    bookkeeping = ("timestamp", "frame_index", "episode_index", "index", "task_index")
    cameras = [key for key, spec in features.items() if is_camera(spec)]
    vectors = [
        f"{key} ({feature_width(spec)})"
        for key, spec in features.items()
        if not is_camera(spec) and key not in bookkeeping
    ]
    return f"cameras {', '.join(cameras) or 'none'}; features {', '.join(vectors) or 'none'}"


def check_files(root: Path, missing: Sequence[str]) -> None:
    """Raise DatasetError naming the first of the files that are missing, and how many."""
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise DatasetError(
            f"LeRobot dataset {root} lacks {len(missing)} of its files: {shown}. Copy it again."
        )


def check_bounds(root: Path, info: Mapping[str, Any], bounds: np.ndarray) -> None:
    """Raise DatasetError unless the episodes follow each other and have all frames. bounds: `(E, 2)` of each."""
    starts, ends, frames = bounds[:, 0], bounds[:, 1], info["total_frames"]
    if not (len(bounds) and starts[0] == 0 and (starts[1:] == ends[:-1]).all() and (starts < ends).all()):
        raise DatasetError(
            f"dataset {root} is inconsistent: the {len(bounds)} episodes of its meta/episodes do not follow each other "
            "frame by frame. It was edited or copied in part; record or copy it again."
        )
    if ends[-1] != frames:
        raise DatasetError(
            f"dataset {root} is inconsistent: meta/episodes lists {ends[-1]} frames, its meta/info.json says {frames}. "
            "Copy or record it again."
        )


def check_rows(
    root: Path, bounds: np.ndarray, stored: int, first: int, index: np.ndarray, episode_index: np.ndarray
) -> None:
    """Raise DatasetError unless rows are frames one after the other, and each episode has its own.

    bounds: `(E, 2)` frames of every episode, as `check_bounds` wants them. stored: rows of all tables together.
    index, episode_index: `(n,)`, as the rows state them that were read; they begin with frame `first`.
    """
    if stored != bounds[-1, 1]:
        raise DatasetError(
            f"dataset {root} is inconsistent: its tables hold {stored} frames, its meta/info.json says "
            f"{bounds[-1, 1]}. Copy or record it again."
        )
    frames = np.arange(first, first + len(index))
    episodes = np.searchsorted(bounds[:, 0], frames, side="right") - 1
    wrong = np.asarray((index != frames) | (episode_index != episodes))
    if wrong.any():
        row = int(wrong.argmax())
        raise DatasetError(
            f"dataset {root} is inconsistent: row {first + row} of its tables should be frame {frames[row]} of episode "
            f"{episodes[row]}, and says {index[row]} of {episode_index[row]}. Its {stored} rows are not the "
            f"consecutive frames of its {len(bounds)} episodes. It was edited or copied in part; record or copy it "
            "again."
        )


def check_tasks(root: Path, tasks: int, first: int, task_index: np.ndarray) -> None:
    """Raise DatasetError where a frame, from `first` on, has an instruction that meta/tasks.parquet does not list."""
    wrong = (task_index < 0) | (task_index >= tasks)
    if wrong.any():
        row = int(wrong.argmax())
        raise DatasetError(
            f"dataset {root} is inconsistent: frame {first + row} has instruction number {task_index[row]}, and "
            f"meta/tasks.parquet lists {tasks}, numbered from 0. Copy or record it again."
        )

"""Drawn episodes as a Rerun recording: actions as curves, cameras as pictures, on the time of the episode.

    <dataset>/episode_000003/actions/<dimension>/recorded, predicted, held
    <dataset>/episode_000003/cameras/<camera>/recorded, foreseen

Chunks that overlap have lanes of their own, `predicted_0`, `predicted_1`, …, so that none hides another.
Time lines: `frame`, counted from the episode's start, and `seconds`.
"""

import uuid
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_mot.evaluate.open_loop.results import DatasetResult, OpenLoopResult
from vla_mot.evaluate.open_loop.traces import DrawnChunk, Moment, Trace
from vla_mot.robots.dimensions import ActionDimension

if TYPE_CHECKING:
    import rerun as rr

RECORDING_FILE = "open_loop.rrd"
APPLICATION = "vla_mot open loop"
_RECORDED, _PREDICTED, _HELD = (27, 31, 36), (31, 111, 235), (217, 115, 13)


def require_rerun() -> None:
    """Raise ModuleNotFoundError where rerun-sdk is not installed."""
    import_module("rerun")


def write_recording(result: OpenLoopResult, path: Path, name: str) -> Path:
    """Write every drawn episode into an `.rrd` file, for `rerun <file>`; returns the path.

    name: of the recording, as the viewer shows it. Its id is its own, for the viewer merges what has one id.
    """
    import rerun as rr

    with rr.RecordingStream(APPLICATION, recording_id=uuid.uuid4()) as stream:
        stream.save(path, default_blueprint=_blueprint(result))
        stream.send_recording_name(name)
        for found in result.datasets:
            for trace in found.traces:
                _write_actions(stream, found, trace)
                _write_cameras(stream, found, trace)
        stream.flush()
        stream.disconnect()  # so that the file is whole before it is moved
    return path


def _place(found: DatasetResult, trace: Trace) -> list[str]:
    """The entity of an episode, part by part; parts are escaped where they become a path."""
    return [*found.dataset.split("/"), f"episode_{trace.episode:06d}"]


def _write_actions(stream: "rr.RecordingStream", found: DatasetResult, trace: Trace) -> None:
    dimensions: Sequence[ActionDimension] = () if found.errors is None else found.errors.dimensions
    lanes = _lanes(trace.chunks, found.stride)
    for column, dimension in enumerate(dimensions):
        curves = {"recorded": (_RECORDED, np.arange(len(trace.actions)), trace.actions[:, column])}
        for ending, chunks in lanes.items():
            frames = np.concatenate([chunk.frame + np.arange(len(chunk.predicted) + 1) for chunk in chunks])
            for name, colour in (("predicted", _PREDICTED), ("held", _HELD)):
                # No number behind each chunk, so that no line leads from it to the next one.
                values = [part for chunk in chunks for part in (getattr(chunk, name)[:, column], [np.nan])]
                curves[name + ending] = (colour, frames, np.concatenate(values))
        for name, curve in curves.items():
            parts = [*_place(found, trace), "actions", dimension.name, name]
            _write_curve(stream, parts, f"{name} ({dimension.unit})", found.fps, *curve)


def _write_curve(
    stream: "rr.RecordingStream",
    parts: list[str],
    label: str,
    fps: float,
    colour: tuple[int, int, int],
    frames: np.ndarray,
    values: np.ndarray,
) -> None:
    import rerun as rr

    entity = rr.new_entity_path(parts)
    stream.log(entity, rr.SeriesLines(colors=[colour], names=[label]), static=True)
    times = [rr.TimeColumn("frame", sequence=frames), rr.TimeColumn("seconds", duration=frames / fps)]
    stream.send_columns(entity, times, rr.Scalars.columns(scalars=values.astype(float)))


def _lanes(chunks: Sequence[DrawnChunk], stride: int) -> dict[str, list[DrawnChunk]]:
    """Chunks that do not overlap, under the ending of their curve's name."""
    longest = max((len(chunk.predicted) for chunk in chunks), default=1)
    count = max(1, -(-longest // stride))
    lanes: dict[str, list[DrawnChunk]] = {}
    for number, chunk in enumerate(chunks):
        lanes.setdefault(f"_{number % count}" if count > 1 else "", []).append(chunk)
    return lanes


def _write_cameras(stream: "rr.RecordingStream", found: DatasetResult, trace: Trace) -> None:
    for moment in trace.moments:
        for camera, view in moment.views.items():
            above = [*_place(found, trace), "cameras", camera]
            for name, picture, frame in _pictures(moment, view, found.offset_frames):
                _write_picture(stream, [*above, name], picture, frame, found.fps)


def _pictures(moment: Moment, view: Any, offset: int) -> list[tuple[str, np.ndarray, int]]:
    """(curve, picture, frame) of one camera at one moment."""
    found = [("recorded", view["copy_last"], moment.frame)]
    if "truth" in view:
        found.append(("recorded", view["truth"], moment.frame + offset))
    if "foresight" in view:
        found.append(("foreseen", view["foresight"], moment.frame + offset))
    return found


def _write_picture(
    stream: "rr.RecordingStream", parts: list[str], picture: np.ndarray, frame: int, fps: float
) -> None:
    import rerun as rr

    stream.set_time("frame", sequence=frame)
    stream.set_time("seconds", duration=frame / fps)
    stream.log(rr.new_entity_path(parts), rr.Image(picture).compress(jpeg_quality=90))
    stream.reset_time()


def _blueprint(result: OpenLoopResult) -> "rr.blueprint.Blueprint":
    """A tab per episode: cameras on the left, one view per dimension on the right."""
    import rerun as rr
    from rerun import blueprint as rrb

    tabs = []
    for found in result.datasets:
        dimensions = () if found.errors is None else found.errors.dimensions
        for trace in found.traces:
            above = _place(found, trace)
            cameras = dict.fromkeys(camera for moment in trace.moments for camera in moment.views)
            pictures = [
                rrb.Spatial2DView(
                    origin=rr.new_entity_path([*above, "cameras", camera, name]), name=f"{camera}, {name}"
                )
                for camera in cameras
                for name in ("recorded", "foreseen")
            ]
            curves = [
                rrb.TimeSeriesView(
                    origin=rr.new_entity_path([*above, "actions", d.name]), name=f"{d.name} ({d.unit})"
                )
                for d in dimensions
            ]
            parts = [rrb.Grid(*views) for views in (pictures, curves) if views]
            tabs.append(rrb.Horizontal(*parts, name=f"{found.dataset}, episode {trace.episode}"))
    return rrb.Blueprint(rrb.Tabs(*tabs), collapse_panels=True)

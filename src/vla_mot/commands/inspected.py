"""What `vla-mot data inspect` says, in words: facts and tables, for the terminal and for the page alike."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from vla_mot.commands.console import clock, console
from vla_mot.data.inspection import CameraSlot, Dimension, Inspection
from vla_mot.evaluate.dataset_page import Sheet
from vla_mot.robots.actions import DELTA
from vla_mot.robots.images import fitted_size

_TASKS = 20  # instructions that are listed


def facts(
    found: Inspection, view: tuple[int, int], offset: int | None, chunk: int, action_mode: str
) -> dict[str, str]:
    """What the dataset is. view: (height, width) of the model's; offset: m in frames; chunk: its steps.

    action_mode: in which it would be learned.
    """
    info, fps = found.info, found.fps
    told = {
        "dataset": str(found.root),
        "format": f"LeRobot {info['codebase_version']}, robot type {info.get('robot_type') or 'not stated'}",
        "size": f"{info.get('total_episodes', 0)} episodes, {found.frames:,} frames at {fps:g} fps, "
        f"{clock(3600 * found.hours)}, {_bytes(found.bytes)}",
        "videos": ", ".join(dict.fromkeys(camera.stored for camera in found.cameras if camera.size))
        or "none",
    }
    quantiles = found.length_quantiles()
    if quantiles:
        told["episodes"] = ", ".join(f"{name} {n} frames ({n / fps:.3g} s)" for name, n in quantiles.items())
    told |= _robot(found, action_mode)
    if offset is not None:
        told["history, foresight"] = f"m = {offset} frames = {offset / fps:.3g} s{_reached(found, offset)}"
    told["chunk"] = f"{chunk} steps = {chunk / fps:.3g} s{_inside(found, chunk)}"
    told["view"] = f"{view[1]}×{view[0]} pixels"
    told["left out"] = ", ".join(found.unused) or "nothing"
    return told


def _robot(found: Inspection, action_mode: str) -> dict[str, str]:
    if found.embodiment is None:
        return {"embodiment": "none"}
    robot = found.embodiment
    how = "inferred from the features" if found.inferred else "as described"
    kind = "" if robot.action_dim else "; without actions it trains foresight only, as people's videos do"
    cameras = len(robot.present_cameras)
    return {
        "embodiment": f"{robot.name}, {how}",
        "state, action": f"{robot.state_dim} and {robot.action_dim} dimensions, "
        f"{sum(robot.delta_mask) if action_mode == DELTA else 0} of them delta{kind}",
        "cameras": f"{cameras} in {len(robot.cameras)} slots",
    }


def _reached(found: Inspection, offset: int) -> str:
    """How many frames have a foresight target inside their episode."""
    if not len(found.lengths):
        return ""
    share = float((found.lengths - offset).clamp(min=0).sum()) / max(1, int(found.lengths.sum()))
    short = int((found.lengths <= offset).sum())
    return f"; {share:.0%} of the frames have a target" + (
        f", {short} of the episodes have none" if short else ""
    )


def _inside(found: Inspection, chunk: int) -> str:
    """How much of the chunks that start at every frame lies inside their episode."""
    if not len(found.lengths):
        return ""
    whole, cut = (found.lengths - chunk + 1).clamp(min=0), found.lengths.clamp(max=chunk - 1)
    steps = whole * chunk + cut * (cut + 1) // 2
    share = float(steps.sum()) / (chunk * max(1, int(found.lengths.sum())))
    return f"; {share:.0%} of its steps lie inside the episode"


def sheets(found: Inspection, view: tuple[int, int], action_mode: str) -> tuple[Sheet, ...]:
    """The tables: dimensions, cameras, instructions."""
    return (
        Sheet(
            "State and action",
            ("dataset feature", "dataset's name", "goes to", "called", "unit", "learned as", "seen"),
            tuple(_dimension(d, action_mode) for d in found.dimensions),
        ),
        Sheet(
            "Cameras",
            ("slot", "image feature", "recorded", "stored", f"in the view of {view[1]}×{view[0]}"),
            tuple(_camera(camera, view) for camera in found.cameras),
        ),
        Sheet("Instructions", ("instruction", "episodes", "frames"), tuple(_tasks(found))),
    )


def _dimension(d: Dimension, action_mode: str) -> tuple[str, ...]:
    learned = ("delta" if d.delta and action_mode == DELTA else "absolute") if d.kind == "action" else ""
    seen = "" if d.low is None or d.high is None else f"{d.low:.4g} … {d.high:.4g}"
    return f"{d.feature} [{d.index}]", d.told, f"{d.kind} {d.slot}", d.name, d.unit, learned, seen


def _camera(camera: CameraSlot, view: tuple[int, int]) -> tuple[str, ...]:
    if camera.size is None:
        return str(camera.slot), camera.key or "–", "", camera.stored, "masked" if camera.key is None else ""
    (height, width), (rows, columns) = camera.size, fitted_size(*camera.size, *view)
    padded = "" if (rows, columns) == view else ", padded"
    enlarged = ", enlarged" if rows > height else ""
    return (
        str(camera.slot),
        camera.key or "–",
        f"{width}×{height}",
        camera.stored,
        f"{columns}×{rows}{padded}{enlarged}",
    )


def _tasks(found: Inspection) -> Sequence[tuple[str, ...]]:
    rows = [(t.task, f"{t.episodes:,}", f"{t.frames:,}") for t in found.tasks[:_TASKS]]
    rest = found.tasks[_TASKS:]
    if rest:
        rows.append((f"… {len(rest)} more", "", f"{sum(t.frames for t in rest):,}"))
    return rows


def say(told: dict[str, str], tables: Sequence[Sheet], problems: Sequence[str], notes: Sequence[str]) -> None:
    """Print it all; what does not fit comes last, where it is read."""
    grid = Table.grid(padding=(0, 3, 0, 0))
    for name, text in told.items():
        grid.add_row(f"[dim]{name}[/dim]", escape(text))
    console.print(grid)
    for sheet in tables:
        if not sheet.rows:
            continue
        table = Table(title=sheet.title, title_justify="left")
        for heading in sheet.head:
            table.add_column(heading)
        for row in sheet.rows:
            table.add_row(*map(escape, row))
        console.print(table)
    for heading, sentences in (("Worth a look", notes), ("What does not fit", problems)):
        if sentences:
            console.print(f"\n[bold]{heading}[/bold]")
        for sentence in sentences:
            console.print(f"  - {escape(sentence)}", soft_wrap=True)


def _bytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"

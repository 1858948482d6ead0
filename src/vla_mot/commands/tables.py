"""Results as tables for people."""

import math
from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from vla_mot.commands.console import console
from vla_mot.evaluate.foresight_report import METHOD_LABELS, ForesightReport
from vla_mot.evaluate.intervals import Interval
from vla_mot.evaluate.open_loop.errors import ActionErrors
from vla_mot.evaluate.open_loop.pictures import METHODS, PictureScores
from vla_mot.evaluate.open_loop.results import OpenLoopResult
from vla_mot.evaluate.results import Arm, Evaluation
from vla_mot.evaluate.wording import counted


def show_success(evaluation: Evaluation) -> None:
    """Print success with Wilson's 95 % interval, the verdicts, and the paired difference to the first arm; then, where
    there were several tasks, the first arm's success in each."""
    several = len(evaluation.arms) > 1
    table = Table(title="Success in closed loop", title_justify="left")
    table.add_column("controller")
    for heading in ("success", "95 % interval", *(["first minus this"] if several else [])):
        table.add_column(heading, justify="right")
    table.add_column("verdicts", style="dim")
    differences = evaluation.comparisons() if several else {}
    for arm in evaluation.arms:
        pair = differences.get(arm.name)
        gain = "" if pair is None else f"{100 * pair.difference.value:+.0f} %"
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in arm.verdicts.items())
        table.add_row(escape(arm.label), *_success(arm), *([gain] if several else []), verdicts)
    console.print(table)
    tasks = evaluation.arms[0].by_task() if evaluation.arms else {}
    if len(tasks) > 1:
        _show_tasks(evaluation.arms[0].label, tasks)


def _show_tasks(label: str, tasks: Mapping[str, Arm]) -> None:
    table = Table(title=f"Of these, {escape(label)} by task", title_justify="left")
    table.add_column("task")
    for heading in ("success", "95 % interval"):
        table.add_column(heading, justify="right")
    for task, arm in tasks.items():
        table.add_row(escape(task), *_success(arm))
    console.print(table)


def _success(arm: Arm) -> tuple[str, str]:
    """`19/20` and its interval."""
    interval = f"{100 * arm.success.low:.0f} … {100 * arm.success.high:.0f} %"
    return f"{arm.successes}/{len(arm.episodes)}", interval


def show_foresight(report: ForesightReport) -> None:
    """Print, per view, the error where something moves, its ratio to the foresight's, and the picture's PSNR."""
    seen = " that training may have seen" if report.trained_on else ""
    table = Table(
        title=f"Foresight {report.offset_frames} frames ahead, on {report.samples} frames of {report.episodes} "
        f"episodes{seen} in which something moves",
        title_justify="left",
    )
    table.add_column("view")
    table.add_column("prediction")
    for heading in (
        "error where it moves",
        "times the foreseen's",
        "error of the whole",
        "PSNR of the whole",
    ):
        table.add_column(heading, justify="right")
    for view in report.views:
        for method, label in METHOD_LABELS.items():
            moving, whole = report.score(view, "moving", method), report.score(view, "whole", method)
            psnr = "" if whole.psnr is None else f"{whole.psnr.value:.1f} dB"
            spans = (_short(part, ".3f") for part in (moving.mse, moving.ratio, whole.mse))
            table.add_row(view, label, *spans, psnr)
        table.add_section()
    console.print(table)


def show_open_loop(result: OpenLoopResult) -> None:
    """Print, per embodiment, action errors beside holding still, and what was foreseen beside copying; then what was
    left out."""
    for name in result.by_embodiment():
        errors, pictures = result.errors(name), result.pictures(name)
        if errors is not None:
            _show_errors(errors)
        if pictures is not None:
            _show_pictures(name, pictures)
    for found in result.datasets:
        for note in found.notes:
            console.print(f"{found.dataset}: {note}", soft_wrap=True)


def _show_errors(errors: ActionErrors) -> None:
    table = Table(
        title=f"Actions of {errors.embodiment}, open loop: {counted(errors.moments, 'chunk')} of "
        f"{counted(errors.episodes, 'episode')}",
        title_justify="left",
    )
    table.add_column("dimensions")
    for heading in ("squared error", "absolute error", "when held still", "times held still"):
        table.add_column(heading, justify="right")
    singles = [errors.single(place) for place in range(len(errors.dimensions))]
    for groups in (errors.groups(), singles):
        for group in groups:
            mine, held = errors.score(group), errors.score(group, "hold")
            cells = (_short(mine.mse), _short(mine.mae), f"{held.mae.value:.3g}", _short(mine.times))
            table.add_row(group.label, *cells)
        table.add_section()
    console.print(table)


def _show_pictures(name: str, pictures: PictureScores) -> None:
    table = Table(title=f"Foresight of {name}, in pixels", title_justify="left")
    table.add_column("camera")
    table.add_column("prediction")
    for heading in ("PSNR", "SSIM", "pictures"):
        table.add_column(heading, justify="right")
    for camera in pictures.cameras:
        for method, label in METHODS.items():
            score = pictures.score(camera, method)
            count = f"{pictures.pictures(camera):,}"
            table.add_row(camera, label, f"{_short(score.psnr, '.1f')} dB", _short(score.ssim, ".3f"), count)
        table.add_section()
    console.print(table)


def _short(interval: Interval, form: str = ".3g") -> str:
    if math.isnan(interval.low):
        return f"{interval.value:{form}}"
    return f"{interval.value:{form}} ({interval.low:{form}} … {interval.high:{form}})"

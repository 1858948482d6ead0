"""One self-contained HTML page about an open-loop evaluation."""

import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from vla_mot.evaluate import html
from vla_mot.evaluate.intervals import Interval
from vla_mot.evaluate.open_loop.errors import ActionErrors, Group, Score
from vla_mot.evaluate.open_loop.pictures import METHODS, PictureScores
from vla_mot.evaluate.open_loop.plots import draw_chunks, draw_horizon
from vla_mot.evaluate.open_loop.results import DatasetResult, OpenLoopResult
from vla_mot.evaluate.open_loop.traces import Moment, Trace
from vla_mot.evaluate.wording import counted, ends, psnr

PAGE_FILE, PLOTS_FOLDER = "open_loop.html", "plots"
_HEAD = (
    "", "", "× held still", "95\u00a0% interval", "squared error", "95\u00a0% interval", "absolute error",
    "when held still",
)  # fmt: skip


def write_page(result: OpenLoopResult, folder: Path, title: str) -> Path:
    """Draw the plots into `folder`/plots and the page, which holds them all, into `folder`; returns the page's path."""
    plots = folder / PLOTS_FOLDER
    plots.mkdir(parents=True, exist_ok=True)
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="lede">{escape(_lede(result))}</p>', _tiles(result)]
    for name, datasets in result.by_embodiment().items():
        parts += [*_actions(result, name, plots), _foresight(result, name), *_episodes(datasets, plots)]
    parts += [_left_out(result), html.section("How it was made", "", html.definitions(result.provenance))]
    path = folder / PAGE_FILE
    path.write_text(html.page(title, parts), encoding="utf-8")
    return path


def _lede(result: OpenLoopResult) -> str:
    moments, episodes = sum(d.moments for d in result.datasets), sum(len(d.episodes) for d in result.datasets)
    where = ", ".join(
        (counted(moments, "moment"), counted(episodes, "episode"), counted(len(result.datasets), "dataset"))
    )
    return (
        f"What the policy would have done at moments of a recording, beside what was done then: {where}. Nothing was "
        "driven: a policy that is near the recording here may still fail on a robot, where its own errors move it to "
        "where nobody recorded anything; and one that solves the task in another way is far."
    )


def _tiles(result: OpenLoopResult) -> str:
    tiles = []
    for name in result.by_embodiment():
        errors, pictures = result.errors(name), result.pictures(name)
        if errors is not None:
            scaled = errors.groups()[-1]
            times = errors.score(scaled).times.value
            tiles.append(
                (f"{times:.2f}×", f"{name}: squared error over that of holding still, in deviations")
            )
        if pictures is not None:
            camera = pictures.cameras[0]
            foreseen, copied = (pictures.score(camera, m).psnr.value for m in ("foresight", "copy_last"))
            tiles.append(
                (_decibels(foreseen), f"{name}: PSNR of the foreseen {camera}; copying: {_decibels(copied)}")
            )
    cells = "".join(
        f'<div class="tile"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for big, small in tiles
    )
    return f'<div class="tiles">{cells}</div>' if tiles else ""


# ---- actions ------------------------------------------------------------------------------------------------


def _actions(result: OpenLoopResult, name: str, plots: Path) -> Iterator[str]:
    errors = result.errors(name)
    if errors is None:
        return
    datasets = [found for found in result.by_embodiment()[name] if found.errors is not None]
    rates = {found.fps for found in datasets}
    groups = [group for group in errors.groups() if group.unit is not None]
    drawn = draw_horizon(
        errors, groups, rates.pop() if len(rates) == 1 else None, plots / f"{_file(name)}-horizon.png"
    )
    size = f"{counted(errors.moments, 'chunk')} of {counted(errors.episodes, 'episode')}, {errors.action_mode} actions"
    yield html.section(
        f"Actions of {name}",
        f"{size}, in the robot's own units: squared errors in their squares. Averaged over all real steps of every "
        "chunk; what lies behind an episode's end is left out. Intervals: a bootstrap over episodes. Held still: the "
        "error of keeping the present state (the training data's mean action where no state stands for an action) for "
        "the whole chunk; × is the policy's squared error over it. Deviations: divided by those that normalize the "
        "robot's actions, so that all units count alike.",
        _table(errors, errors.groups()),
        "<h3>Per dimension</h3>",
        _table(errors, [errors.single(place) for place in range(len(errors.dimensions))]),
        "<h3>Over the horizon: absolute error</h3>",
        _figure(drawn, f"absolute error of {name} over the horizon"),
        _by_dataset(datasets) if len(datasets) > 1 else "",
    )


def _table(errors: ActionErrors, groups: Sequence[Group]) -> str:
    scores = [(group.label, errors.score(group), errors.score(group, "hold")) for group in groups]
    largest = max([1.0, *(html.top(mine.times) for _, mine, _ in scores)])
    rows = [_row(label, mine, held, largest, first=n == 0) for n, (label, mine, held) in enumerate(scores)]
    return f'<div class="scores">{html.table(_HEAD, rows)}</div>'


def _row(label: str, mine: Score, held: Score, largest: float, *, first: bool) -> list[str]:
    bar = mine.times if math.isfinite(mine.times.value) else Interval(0.0, 0.0, 0.0)
    return [
        escape(label),
        html.interval_bar(bar, largest, accent=first),
        html.number(_times(mine.times.value)),
        html.number(ends(mine.times), dim=True),
        html.number(f"{mine.mse.value:.3g}"),
        html.number(ends(mine.mse), dim=True),
        html.number(f"{mine.mae.value:.3g}"),
        html.number(f"{held.mae.value:.3g}", dim=True),
    ]


def _by_dataset(datasets: Sequence[DatasetResult]) -> str:
    scores = []
    for found in datasets:
        assert found.errors is not None
        scaled = found.errors.groups()[-1]
        scores.append((found.dataset, found.errors.score(scaled), found.errors.score(scaled, "hold")))
    largest = max([1.0, *(html.top(mine.times) for _, mine, _ in scores)])
    rows = [_row(label, mine, held, largest, first=False) for label, mine, held in scores]
    return f'<h3>Per dataset, in deviations</h3><div class="scores">{html.table(_HEAD, rows)}</div>'


# ---- foresight ----------------------------------------------------------------------------------------------


def _foresight(result: OpenLoopResult, name: str) -> str:
    datasets, pictures = result.by_embodiment()[name], result.pictures(name)
    if pictures is None:
        return ""
    offsets = sorted(
        {f"{found.offset_frames} frames ({found.offset_frames / found.fps:.3g} s)" for found in datasets}
    )
    return html.section(
        f"Foresight of {name}",
        f"Pictures {' or '.join(offsets)} ahead against the true ones: peak signal-to-noise ratio of the mean squared "
        "error, and structural similarity (SSIM: Gaussian window of 11 pixels, 1 for the same picture). Copying the "
        "last frame is hard to beat where little moves. The truth through the tokenizer is as good as any foresight "
        "can look. Intervals: a bootstrap over episodes.",
        _picture_table(pictures),
        _strips(datasets),
    )


def _picture_table(pictures: PictureScores) -> str:
    head = ("", "PSNR", "95\u00a0% interval", "SSIM", "95\u00a0% interval", "pictures")
    rows = []
    for camera in pictures.cameras:
        for method, label in METHODS.items():
            score = pictures.score(camera, method)
            rows.append(
                [
                    escape(f"{camera}: {label}"),
                    html.number(_decibels(score.psnr.value)),
                    html.number(ends(score.psnr, ".1f"), dim=True),
                    html.number(f"{score.ssim.value:.3f}"),
                    html.number(ends(score.ssim, ".3f"), dim=True),
                    html.number(f"{pictures.pictures(camera):,}", dim=True),
                ]
            )
    return f'<div class="scores">{html.table(head, rows)}</div>'


def _strips(datasets: Sequence[DatasetResult]) -> str:
    """Of every drawn episode, the moment at which most moves."""
    body: list[str] = []
    for found in datasets:
        for trace in found.traces:
            moment = _liveliest(trace)
            if moment is not None:
                body += _strip_rows(found, trace, moment)
    if not body:
        return ""
    columns = ("", "past, t − m", "present, t", "foreseen, t + m", "true future, t + m")
    head = "".join(f"<th>{escape(text)}</th>" for text in columns)
    table = f'<table class="strips"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    note = (
        "Of each episode that is drawn, the moment at which most moves, whatever the error. Below: PSNR against the "
        "truth."
    )
    return f'<h3>Pictures</h3><p class="note">{note}</p><div class="scroll">{table}</div>'


def _liveliest(trace: Trace) -> Moment | None:
    whole = [
        m for m in trace.moments if all({"truth", "foresight"} <= set(view) for view in m.views.values())
    ]
    return max(whole, key=lambda moment: moment.moved, default=None)


def _strip_rows(found: DatasetResult, trace: Trace, moment: Moment) -> Iterator[str]:
    for number, (camera, view) in enumerate(moment.views.items()):
        heading = (
            f"{escape(found.dataset)}<br>episode {trace.episode}, frame {moment.frame}<br>{escape(camera)}"
        )
        cells = []
        for name in ("past", "copy_last", "foresight", "truth"):
            compared = name in ("copy_last", "foresight")
            caption = f"<small>{psnr(view[name], view['truth'])}</small>" if compared else ""
            mark = ' class="main"' if name == "foresight" else ""
            cells.append(f"<td{mark}>{html.picture(view[name], f'{camera}, {name}')}{caption}</td>")
        last = " class=last" if number == len(moment.views) - 1 else ""
        yield f"<tr{last}><th>{heading}</th>{''.join(cells)}</tr>"


# ---- episodes -----------------------------------------------------------------------------------------------


def _episodes(datasets: Sequence[DatasetResult], plots: Path) -> Iterator[str]:
    for found in datasets:
        traces = [trace for trace in found.traces if trace.chunks]
        if found.errors is None or not traces:
            continue
        parts = []
        for trace in traces:
            path = plots / f"{_file(found.dataset)}-{trace.episode:06d}.png"
            draw_chunks(trace, found.errors.dimensions, found.fps, path)
            words = f"Episode {trace.episode}: {trace.task}" if trace.task else f"Episode {trace.episode}"
            parts.append(f"<h3>{escape(words)}</h3>{_figure(path, words)}")
        yield html.section(
            f"Chunks over episodes of {found.dataset}",
            f"A chunk of {found.chunk_size} steps is predicted every {found.stride} frames, from what was recorded "
            "there.",
            *parts,
        )


def _left_out(result: OpenLoopResult) -> str:
    notes = [f"{found.dataset}: {note}" for found in result.datasets for note in found.notes]
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return html.section("Left out", "", f"<ul>{items}</ul>") if notes else ""


# ---- words --------------------------------------------------------------------------------------------------


def _figure(path: Path, text: str) -> str:
    with Image.open(path) as picture:
        array = np.asarray(picture.convert("RGB"))
    return f'<div class="figure">{html.picture(array, text)}</div>'


def _file(name: str) -> str:
    """A name that may hold slashes, as part of a file's."""
    return name.strip("/").replace("/", "__")


def _times(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "–"


def _decibels(value: float) -> str:
    return f"{value:.1f} dB" if math.isfinite(value) else "exact"

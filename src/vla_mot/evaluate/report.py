"""One self-contained HTML page about a run: what it learned, how well it acts, what it foresees, how it was made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from vla_mot.evaluate import html, training_sections
from vla_mot.evaluate.curves import learning_curves
from vla_mot.evaluate.foresight_report import METHOD_LABELS, ForesightExample, ForesightReport
from vla_mot.evaluate.results import Arm, Evaluation
from vla_mot.evaluate.wording import difference, duration, ends, percent, percents, points, psnr, sentence

VERDICT_COLOURS = {
    "success": "var(--accent)",
    "wrong_object": "var(--wrong)",
    "failure": "var(--bad)",
    "time_out": "var(--late)",
}
_OTHER_VERDICT = "var(--soft)"
_TILE_NOTES = {
    "no_history": "of success when the present frame replaces its history",
    "other_instruction": "of success when it is told to fetch the other object",
}


@dataclass(frozen=True)
class ReportContent:
    """What a report shows; sections without content are left out.

    title, lede: of the page, and a sentence or two under the title.
    records: the run's log, `{"step", "kind": "train" | "validation", …numbers}` each.
    evaluation: see there; its provenance is shown. videos: caption → mp4 file, inlined.
    config: the run's configuration, group → text (YAML). pictures: step → PNG file; the newest is shown.
    provenance: further facts in order, e.g. command, seed, training time (`machine.describe_machine`).
    """

    title: str
    lede: str = ""
    records: Sequence[Mapping[str, Any]] = ()
    evaluation: Evaluation | None = None
    videos: Mapping[str, Path] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    pictures: Mapping[int, Path] = field(default_factory=dict)


def write_report(content: ReportContent, path: Path) -> Path:
    """Write the page to `path`, making its folder if needed; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_report(content), encoding="utf-8")
    return path


def render_report(content: ReportContent) -> str:
    """Return the page: HTML with every picture, film and style inside, and no reference to any address."""
    evaluation = content.evaluation
    foresight = evaluation.foresight if evaluation else None
    parts = [
        f"<h1>{escape(content.title)}</h1>",
        f'<p class="lede">{escape(content.lede)}</p>' if content.lede else "",
        _tiles(content),
        _pictures(foresight) if foresight and foresight.examples else "",
        _success(evaluation) if evaluation and evaluation.arms else "",
        _films(content.videos) if content.videos else "",
        _foresight(foresight) if foresight else "",
        _curves(content.records),
        training_sections.losses_by_origin(content.records),
        training_sections.validation(content.records, content.pictures),
        training_sections.engine(content.records),
        _making(content),
    ]
    return html.page(content.title, parts)


# ---- sections -----------------------------------------------------------------------------------------------


def _tiles(content: ReportContent) -> str:
    tiles = []
    evaluation = content.evaluation
    if evaluation and evaluation.arms:
        first = evaluation.arms[0]
        tiles.append(
            (percent(first.success.value), f"{sentence(first.label)}: success in {len(first.episodes)} episodes, "
             f"interval {percents(first.success)}")
        )  # fmt: skip
        tiles += [
            (points(-paired.difference.value), _TILE_NOTES[name])
            for name, paired in evaluation.comparisons().items()
            if name in _TILE_NOTES
        ]
    if evaluation and evaluation.foresight:
        report = evaluation.foresight
        ratio = report.score(report.views[0], "moving", "copy_last").ratio
        tiles.append(
            (
                f"{ratio.value:.1f}×",
                f"error of copying the last frame over foresight's, {report.views[0]}, moving",
            )
        )
    seconds = [record["seconds"] for record in content.records if "seconds" in record]
    if seconds:
        tiles.append((duration(seconds[-1]), f"of training, {content.records[-1]['step']:,} steps"))
    cells = "".join(
        f'<div class="tile"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for big, small in tiles
    )
    return f'<div class="tiles">{cells}</div>' if tiles else ""


def _success(evaluation: Evaluation) -> str:
    differences = evaluation.comparisons()
    rows = [
        [
            escape(sentence(arm.label)),
            html.interval_bar(arm.success, 1.0, accent=number == 0),
            html.number(percent(arm.success.value)),
            html.number(percents(arm.success), dim=True),
            html.number(str(len(arm.episodes)), dim=True),
            html.number(difference(differences.get(arm.name)), dim=True),
        ]
        for number, arm in enumerate(evaluation.arms)
    ]
    head = [
        "",
        "",
        "success",
        "95\u00a0% interval",
        "episodes",
        f"{sentence(evaluation.arms[0].label)} − this one, paired",
    ]
    return html.section(
        "Closed loop",
        "Intervals are Wilson's; differences are over the episodes that both rows ran, bootstrapped over them (where "
        "all differ alike: Newcombe's interval). Verdicts are the environment's own.",
        html.table(head, rows, emphasize_first=True),
        _by_task(evaluation.arms[0]),
        "<h3>How episodes ended</h3>",
        _verdicts(evaluation.arms),
    )


def _by_task(arm: Arm) -> str:
    """The arm's success in every task, where there are several."""
    tasks = arm.by_task()
    if len(tasks) < 2:
        return ""
    rows = [
        [
            escape(task),
            html.interval_bar(one.success, 1.0, accent=True),
            html.number(percent(one.success.value)),
            html.number(percents(one.success), dim=True),
            html.number(str(len(one.episodes)), dim=True),
        ]
        for task, one in tasks.items()
    ]
    heading = f"<h3>{escape(sentence(arm.label))}, by task</h3>"
    head = ["", "", "success", "95\u00a0% interval", "episodes"]
    return heading + html.table(head, rows)


def _verdicts(arms: Sequence[Arm]) -> str:
    names = dict.fromkeys([*VERDICT_COLOURS, *(name for arm in arms for name in arm.verdicts)])
    present = [name for name in names if any(name in arm.verdicts for arm in arms)]
    colours = {name: VERDICT_COLOURS.get(name, _OTHER_VERDICT) for name in present}
    rows = [
        [
            escape(sentence(arm.label)),
            html.stacked_bar({name: arm.verdicts[name] for name in present if name in arm.verdicts}, colours),
            *(html.number(str(arm.verdicts.get(name, 0)), dim=name not in arm.verdicts) for name in present),
        ]
        for arm in arms
    ]
    words = {name.replace("_", " "): colour for name, colour in colours.items()}
    return html.table(["", "", *words], rows, emphasize_first=True) + html.legend(words)


def _pictures(report: ForesightReport) -> str:
    m = report.offset_frames
    columns = {
        f"past, t − {m}": "past",
        "present, t": "present",
        f"true future, t + {m}": "future",
        f"foreseen, t + {m}": "foreseen",
        METHOD_LABELS["no_history"]: "no_history",
        METHOD_LABELS["copy_last"]: "present",
    }
    head = "".join(f"<th>{escape(text)}</th>" for text in ("", *columns))
    body = []
    for number, example in enumerate(report.examples):
        following = report.examples[number + 1 :][:1]
        is_last = not following or following[0].episode != example.episode
        cells = [_strip_cell(example, text, name) for text, name in columns.items()]
        heading = f"episode {example.episode}<br>{escape(example.view)}"
        body.append(f"<tr{' class=last' if is_last else ''}><th>{heading}</th>{''.join(cells)}</tr>")
    table = f'<table class="strips"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    return html.section(
        "What it foresees",
        f"The model sees the past and the present frame and predicts the latents of the frame {m} steps ahead in one "
        "pass; pictures are decoded from them. Of each episode shown, the moment at which most moves was "
        "chosen, whatever the error. Below: signal-to-noise ratio against the true future.",
        f'<div class="scroll">{table}</div>',
    )


def _strip_cell(example: ForesightExample, text: str, name: str) -> str:
    array = getattr(example, name)
    predicted = text.startswith(("foreseen", "copy"))
    caption = f"<small>{psnr(array, example.future)}</small>" if predicted else ""
    mark = ' class="main"' if name == "foreseen" else ""
    return f"<td{mark}>{html.picture(array, f'{example.view}, {text}')}{caption}</td>"


def _foresight(report: ForesightReport) -> str:
    notes = {
        "moving": f"Only latent cells that change by more than {report.threshold:g}",
        "whole": "The whole picture, in samples where something moves",
    }
    seen = " that training may have seen" if report.trained_on else ""
    tables = [f"<h3>{escape(note)}</h3>{_score_table(report, region)}" for region, note in notes.items()]
    return html.section(
        "Foresight, scored",
        f"Mean squared error of latents (lower is better) over {report.samples:,} samples of {report.episodes} "
        f"episodes{seen}, with 95\u00a0% intervals from a bootstrap over episodes; × is this row's error over "
        "foresight's, paired. History replaced: the present frame stands in for the past one. Copying cannot do well "
        "where cells were chosen because they change; that is why the whole picture and the other rows are there.",
        *tables,
    )


def _score_table(report: ForesightReport, region: str) -> str:
    head = [""]
    for view in report.views:
        head += [view, "error", "95\u00a0% interval", "×"] + (["PSNR"] if region == "whole" else [])
    largest = {
        view: max(html.top(report.score(view, region, method).mse) for method in METHOD_LABELS)
        for view in report.views
    }
    rows = []
    for method, label in METHOD_LABELS.items():
        row = [escape(sentence(label))]
        for view in report.views:
            score = report.score(view, region, method)
            row += [
                html.interval_bar(score.mse, largest[view], accent=method == "foresight"),
                html.number(f"{score.mse.value:.3f}"),
                html.number(ends(score.mse, ".3f"), dim=True),
                html.number(f"{score.ratio.value:.2f}"),
            ]
            if region == "whole":
                row.append(html.number(f"{score.psnr.value:.1f} dB" if score.psnr else "–"))
        rows.append(row)
    return f'<div class="scores">{html.table(head, rows, emphasize_first=True)}</div>'


def _films(videos: Mapping[str, Path]) -> str:
    films = "".join(html.film(path, caption) for caption, path in videos.items())
    return html.section(
        "Episodes",
        "Above what the cameras see; below, where a policy drives, what it foresaw when it planned.",
        f'<div class="films">{films}</div>',
    )


def _curves(records: Sequence[Mapping[str, Any]]) -> str:
    svg = learning_curves(records)
    if not svg:
        return ""
    note = "Validation is computed with the averaged weights on episodes that were never trained on, with fixed noise."
    return html.section("Learning curves", note, f'<div class="curves">{svg}</div>')


def _making(content: ReportContent) -> str:
    facts = dict(content.provenance)
    if content.evaluation:
        facts |= content.evaluation.provenance
    if not facts and not content.config:
        return ""
    folded = "".join(html.folded(name, text) for name, text in content.config.items())
    return html.section("How it was made", "", html.definitions(facts) if facts else "", folded)

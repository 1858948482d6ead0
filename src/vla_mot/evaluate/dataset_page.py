"""One self-contained HTML page about a dataset: how it maps to a robot, what it looks like, what does not fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from vla_mot.evaluate import html


@dataclass(frozen=True)
class Sheet:
    """A table in words: title, heads and rows of cells."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class DatasetPage:
    """What the page shows; parts without content are left out.

    title: of the page. facts: names and what they are. problems, notes: sentences. sheets: tables.
    pictures: heading → (note, PNG file), inlined. embodiment: its YAML.
    """

    title: str
    facts: Mapping[str, str]
    problems: Sequence[str]
    notes: Sequence[str]
    sheets: Sequence[Sheet]
    pictures: Mapping[str, tuple[str, Path]]
    embodiment: str = ""


def write_page(content: DatasetPage, path: Path) -> Path:
    """Write the page to `path`; returns it."""
    verdict = (
        "It fits."
        if not content.problems
        else f"It does not fit: {len(content.problems)} problem(s), listed below."
    )
    parts = [
        f"<h1>{escape(content.title)}</h1>",
        f'<p class="lede">{verdict}</p>',
        _sentences("What does not fit", "Training on it is refused until this is mended.", content.problems),
        _sentences("Worth a look", "Nothing of this forbids training.", content.notes),
        html.section("The dataset", "", html.definitions(content.facts)),
        *(_picture(heading, note, file) for heading, (note, file) in content.pictures.items()),
        *(html.section(sheet.title, "", _table(sheet)) for sheet in content.sheets if sheet.rows),
    ]
    if content.embodiment:
        note = "Save it as a YAML file, correct it, and name it with embodiment.files=[<file>]."
        parts.append(html.section("The embodiment", note, f"<pre>{escape(content.embodiment)}</pre>"))
    path.write_text(html.page(content.title, parts), encoding="utf-8")
    return path


def _sentences(title: str, note: str, sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    return html.section(title, note, f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in sentences)}</ul>")


def _table(sheet: Sheet) -> str:
    rows = [[escape(first), *(html.number(cell) for cell in cells)] for first, *cells in sheet.rows]
    return html.table(sheet.head, rows)


def _picture(heading: str, note: str, file: Path) -> str:
    with Image.open(file) as picture:
        array = np.asarray(picture.convert("RGB"))
    return html.section(heading, note, f'<div class="figure">{html.picture(array, heading)}</div>')

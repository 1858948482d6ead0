"""Small pieces of HTML: escaped text, tables with bars inside, pictures and films as data. Nothing refers outside.

Every function returns HTML; what is called `text` is escaped, what is called `cell` or `html` is HTML already.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from vla_mot.evaluate.intervals import Interval

_BAR_HEIGHT = 22


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page with its style inside; empty parts are left out. parts: HTML."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n"
        f"<body><main>{chr(10).join(part for part in parts if part)}</main></body></html>\n"
    )


def section(title: str, note: str, *parts: str) -> str:
    """A part of a page under its own heading; empty parts are left out. parts: HTML."""
    body = "\n".join(part for part in parts if part)
    return f'<section><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>{body}</section>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, emphasize_first: bool = False) -> str:
    """A table of cells; the first cell of a row is its heading. head: texts."""
    top = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = []
    for number, (first, *cells) in enumerate(rows):
        mark = ' class="first"' if emphasize_first and number == 0 else ""
        body.append(f"<tr{mark}><th>{first}</th>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def number(text: str, *, dim: bool = False) -> str:
    """A cell with a number."""
    return f'<td class="num{" dim" if dim else ""}">{escape(text)}</td>'


def top(interval: Interval) -> float:
    """The larger of what `interval_bar` draws of an interval."""
    return max((end for end in (interval.value, interval.high) if math.isfinite(end)), default=0.0)


def interval_bar(interval: Interval, largest: float, *, accent: bool) -> str:
    """A cell with a bar from 0 to the value and a whisker over the interval; the full width is `largest`."""
    scale = 100 / largest if largest > 0 else 0.0
    value, low, high = (scale * end for end in (interval.value, interval.low, interval.high))
    middle = _BAR_HEIGHT / 2
    colour = "var(--accent)" if accent else "var(--soft)"
    whisker = (
        f'<path d="M{low:.2f} {middle}H{high:.2f}M{low:.2f} {middle - 4}v8M{high:.2f} {middle - 4}v8" fill="none" '
        'stroke="var(--ink)" stroke-width="1.5" vector-effect="non-scaling-stroke"/>'
        if low < high
        else ""
    )
    return (
        f'<td class="plot"><svg viewBox="0 0 100 {_BAR_HEIGHT}" height="{_BAR_HEIGHT}" preserveAspectRatio="none">'
        f'<rect width="100" height="12" y="5" fill="var(--shade)"/>'
        f'<rect width="{value:.2f}" height="12" y="5" fill="{colour}"/>{whisker}</svg></td>'
    )


def stacked_bar(parts: Mapping[str, int], colours: Mapping[str, str]) -> str:
    """A cell with one bar cut into shares; each part's name is its tool tip. colours: part → CSS colour."""
    total, x, pieces = max(1, sum(parts.values())), 0.0, []
    for name, count in parts.items():
        width = 100 * count / total
        pieces.append(
            f'<rect x="{x:.2f}" width="{max(width - 0.4, 0.1):.2f}" height="14" y="4" fill="{colours[name]}">'
            f"<title>{escape(name)}: {count}</title></rect>"
        )
        x += width
    body = "".join(pieces)
    return (
        f'<td class="plot"><svg viewBox="0 0 100 {_BAR_HEIGHT}" height="{_BAR_HEIGHT}" '
        f'preserveAspectRatio="none">{body}</svg></td>'
    )


def legend(colours: Mapping[str, str]) -> str:
    """Names with their colours."""
    items = (f'<span><i style="background:{css}"></i>{escape(name)}</span>' for name, css in colours.items())
    return f'<div class="key">{"".join(items)}</div>'


def definitions(facts: Mapping[str, str]) -> str:
    """Names and what they are."""
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in facts.items())}</dl>"


def folded(text: str, content: str) -> str:
    """Preformatted text behind a heading that opens it."""
    return f"<details><summary>{escape(text)}</summary><pre>{escape(content)}</pre></details>"


def folded_html(text: str, content: str) -> str:
    """HTML behind a heading that opens it."""
    return f"<details><summary>{escape(text)}</summary>{content}</details>"


def picture(array: np.ndarray, text: str) -> str:
    """An `(H, W, 3)` uint8 picture as an inlined PNG; text: what it shows."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(file, format="PNG", optimize=True)
    return f'<img alt="{escape(text, quote=True)}" src="{_data("image/png", file.getvalue())}">'


def film(path: Path, text: str) -> str:
    """An mp4 file as an inlined, looping film with a caption."""
    source = _data("video/mp4", path.read_bytes())
    return (
        f'<figure><video controls muted loop playsinline src="{source}"></video>'
        f"<figcaption>{escape(text)}</figcaption></figure>"
    )


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

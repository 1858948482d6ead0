"""Our docstrings as Markdown, for the reference pages of the site: a Griffe extension, see mkdocs.yml.

They are prose in which `name: what it is` begins a line for each argument or field. Markdown would run such lines
together; here each becomes an entry of a list.
"""

import re
from collections.abc import Iterator
from typing import Any

import griffe

_ENTRY = re.compile(r"(\*{0,2}[a-z_]\w*(?:, [a-z_]\w*)*): (?=\S)")
_SENTENCE = re.compile(rf"(?<=\.) (?={_ENTRY.pattern})")
"""Where one entry ends and another begins on the same line."""


class Entries(griffe.Extension):
    """Rewrites the docstring of every object that is read."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called once for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Lines `name: …` and what goes on with them as list entries; everything else as it is."""
    lines: list[str] = []
    listing = False
    for line in _one_each(text.splitlines()):
        if entry := _ENTRY.match(line):
            if not listing and lines and lines[-1]:
                lines.append("")
            lines.append(f"- `{entry[1].replace(', ', '`, `')}`: {line[entry.end() :]}")
            listing = True
        elif listing and line and not _begins_anew(lines[-1], line):
            lines.append(f"  {line.strip()}")
        else:
            if listing and line:
                lines.append("")
            lines.append(line)
            listing = False
    return "\n".join(lines)


def _one_each(lines: list[str]) -> Iterator[str]:
    """The lines, those of a list cut where another entry begins."""
    listing = False
    for line in lines:
        listing = bool(line) and (listing or bool(_ENTRY.match(line)))
        cut = [place.start() for place in _SENTENCE.finditer(line)] if listing else []
        for start, end in zip([0, *cut], [*cut, len(line)], strict=True):
            yield line[start:end].strip() if start else line[:end]


def _begins_anew(before: str, line: str) -> bool:
    """Whether a line after an entry is a sentence of its own, and not the entry wrapped."""
    return before.endswith((".", "…")) and line[:1].isupper()

"""One self-contained HTML page about a run: what it learned, how well it acts, what it foresees, how it was made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_mot.evaluate.results import Evaluation


@dataclass(frozen=True)
class ReportContent:
    """What a report shows; sections without content are left out.

    title: of the page. records: the run's log, `{"step", "kind": "train" | "validation", …numbers}` each.
    evaluation: see there; its provenance is shown. config: the run's configuration, group → text (YAML).
    provenance: further facts in order, e.g. command, seed, training time (`machine.describe_machine`).
    """

    title: str
    records: Sequence[Mapping[str, Any]] = ()
    evaluation: Evaluation | None = None
    config: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)


def render_report(content: ReportContent) -> str:
    """Return the page: HTML with every picture and style inside, and no reference to any address."""
    return f"<!doctype html><title>{content.title}</title>"


def write_report(content: ReportContent, path: Path) -> Path:
    """Write the page to `path`, making its folder if needed; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_report(content))
    return path

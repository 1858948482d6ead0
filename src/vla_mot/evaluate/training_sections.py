"""Sections of a report that a run's log fills: losses by origin, validation in physical units, how the engine ran.

Each returns HTML, or an empty string where the log says nothing of it. Keys are those of `vla_mot.train`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from vla_mot.evaluate import html
from vla_mot.evaluate.curves import SERIES, Panel, Records, curve, panel_curves
from vla_mot.evaluate.intervals import Interval
from vla_mot.evaluate.wording import percent, sentence

_LOSS = re.compile(r"(?P<kind>dataset|group|embodiment)/(?P<name>.+)/(?P<term>action|foresight)_loss")
_ERROR = re.compile(r"action_mae/(?P<robot>[^/]+?)(/(?P<dimension>.+))? \((?P<unit>[^()]*)\)")
_KINDS = {"dataset": "dataset", "group": "group", "embodiment": "robot"}
_ALL = {"1": "all without a unit", "unknown": "all of unknown unit"}
_SHOWN = 20  # steps that are listed
_EXPERTS = ("vision", "understanding", "generation", "action")
_FORESIGHT = (
    Panel("foresight: latent error, whole picture",
          {"foreseen": "foresight/mse", "copy of the last frame": "foresight/copy_mse"}, "validation"),
    Panel("foresight: latent error, where something moves",
          {"foreseen": "foresight/moving_mse", "copy of the last frame": "foresight/moving_copy_mse"}, "validation"),
)  # fmt: skip
_ENGINE = (
    Panel("gradient norm", {name: f"grad_norm/{name}" for name in _EXPERTS} | {"all": "grad_norm"}),
    Panel("learning rate", {name: f"lr/{name}" for name in _EXPERTS}, scale="linear"),
    Panel("samples per second", {"": "samples_per_second"}, scale="linear"),
    Panel("utilisation of the measured matmul rate", {"": "machine/utilisation"}, scale="percent"),
    Panel("time spent waiting for data", {"": "machine/data_wait"}, scale="percent"),
    Panel("peak memory, GiB", {"": "machine/memory_gib"}, scale="linear"),
)


def losses_by_origin(records: Records) -> str:
    """Training losses by dataset (or group of datasets) and by robot; nothing where there is one of each."""
    found = _by_kind(records)
    several = {kind: names for kind, names in found.items() if len(names) > 1}
    if not several:
        return ""
    panels = [
        Panel(f"{term} loss by {_KINDS[kind]}", _worst(records, kind, term, names))
        for kind, names in several.items()
        for term in ("action", "foresight")
    ]
    crowded = any(len(names) > SERIES for names in several.values())
    note = "Means over the log window, of the noise that was drawn. " + (
        f"Of more than {SERIES}, those with the highest newest loss are drawn; all are in the table."
        if crowded
        else ""
    )
    tables = [html.folded_html(f"newest losses by {_KINDS[kind]}", _loss_table(records, kind, names))
              for kind, names in several.items()]  # fmt: skip
    return html.section("Losses by dataset and robot", note, _figure(panel_curves(records, panels)), *tables)


def validation(records: Records, pictures: Mapping[int, Path]) -> str:
    """The newest picture, open-loop errors per dimension, and foresight beside copying. pictures: step → PNG file."""
    errors, foresight = _error_tables(records), panel_curves(records, _FORESIGHT)
    if not (errors or foresight or pictures):
        return ""
    return html.section(
        "Validation",
        "With the averaged weights, on episodes that were never trained on, from noise that never changes. Chunks are "
        "sampled as on the robot and compared with the recorded ones in the robot's units, over the whole chunk.",
        _newest_picture(pictures),
        errors,
        _figure(foresight),
    )


def engine(records: Records) -> str:
    """Gradient norms, rates, throughput and what the machine did."""
    drawn = panel_curves(records, _ENGINE)
    if not drawn:
        return ""
    waited = curve(records, "train", "machine/data_wait")[1]
    told = (
        f" Over the log, {percent(sum(waited) / len(waited))} of the time went by waiting for data."
        if waited
        else ""
    )
    return html.section(
        "How it ran",
        "Gradient norms are those before clipping. Utilisation is the floating-point operations of the model, counted, "
        "over those that the same device reached in products of large matrices when the run began." + told,
        _figure(drawn),
        _incidents(records),
    )


def _incidents(records: Records) -> str:
    """Steps whose loss stood out, and those that were left out because it was no number."""
    rows = []
    for kind, text in (("spike", "loss stood out"), ("skipped", "left out: loss or gradient was not finite")):
        steps = [f"{record['step']:,}" for record in records if record["kind"] == kind]
        if steps:
            shown = ", ".join(steps[-_SHOWN:]) + (
                f" (the last {_SHOWN} of {len(steps)})" if len(steps) > _SHOWN else ""
            )
            rows.append([escape(sentence(text)), html.number(f"step {shown}", dim=True)])
    return html.table(["", "when"], rows) if rows else ""


# ---- pieces -------------------------------------------------------------------------------------------------


def _figure(svg: str) -> str:
    return f'<div class="curves">{svg}</div>' if svg else ""


def _keys(records: Records, kind: str) -> list[str]:
    """Every key that records of that kind have, in the order in which they came."""
    return list(dict.fromkeys(key for record in records if record["kind"] == kind for key in record))


def _newest(records: Records, kind: str, key: str) -> float | None:
    values = curve(records, kind, key)[1]
    return values[-1] if values else None


def _by_kind(records: Records) -> dict[str, list[str]]:
    """`dataset`, `group`, `embodiment` → the names whose losses are told."""
    found: dict[str, dict[str, None]] = {}
    for key in _keys(records, "train"):
        if match := _LOSS.fullmatch(key):
            found.setdefault(match["kind"], {})[match["name"]] = None
    return {kind: list(names) for kind, names in found.items()}


def _worst(records: Records, kind: str, term: str, names: Iterable[str]) -> dict[str, str]:
    """Name → key, of at most as many as can be drawn: those with the highest newest loss."""
    keys = {name: f"{kind}/{name}/{term}_loss" for name in names}
    newest = {name: _newest(records, "train", key) for name, key in keys.items()}
    ranked = sorted((n for n in keys if newest[n] is not None), key=lambda n: newest[n] or 0.0, reverse=True)
    chosen = set(ranked[:SERIES])
    return {name: key for name, key in keys.items() if name in chosen}


def _loss_table(records: Records, kind: str, names: Sequence[str]) -> str:
    rows = []
    for name in names:
        terms = [_newest(records, "train", f"{kind}/{name}/{term}_loss") for term in ("action", "foresight")]
        told = [html.number("–" if value is None else f"{value:.4g}", dim=value is None) for value in terms]
        rows.append([escape(name), *told])
    return html.table(["", "action loss", "foresight loss"], rows)


def _error_tables(records: Records) -> str:
    """One table per robot: mean absolute error of every dimension, and of all of a unit together."""
    robots: dict[str, list[re.Match[str]]] = {}
    for key in _keys(records, "validation"):
        if match := _ERROR.fullmatch(key):
            robots.setdefault(match["robot"], []).append(match)
    parts = []
    for robot, matches in robots.items():
        parts.append(f"<h3>Open-loop action error, {escape(robot)}</h3>{_error_table(records, matches)}")
    return "".join(parts)


def _error_table(records: Records, matches: Sequence[re.Match[str]]) -> str:
    """Dimensions, then the means over those of one unit where there are several."""
    ordered = [m for m in matches if m["dimension"]] + [m for m in matches if not m["dimension"]]
    newest = {m[0]: _newest(records, "validation", m[0]) or 0.0 for m in ordered}
    largest: dict[str, float] = {}
    for match in ordered:
        largest[match["unit"]] = max(largest.get(match["unit"], 0.0), newest[match[0]])
    rows = [_error_row(records, match, newest[match[0]], largest[match["unit"]]) for match in ordered]
    return html.table(
        ["dimension", "", "mean absolute error", "root mean square", "at the first validation"], rows
    )


def _error_row(records: Records, match: re.Match[str], value: float, largest: float) -> list[str]:
    unit = "" if match["unit"] == "1" else f" {match['unit']}"
    first = curve(records, "validation", match[0])[1][:1]
    square = _newest(records, "validation", match[0].replace("action_mae", "action_rmse", 1))
    return [
        escape(match["dimension"] or _ALL.get(match["unit"], f"all in {match['unit']}")),
        html.interval_bar(Interval(value, value, value), largest, accent=bool(match["dimension"])),
        html.number(f"{value:.4g}{unit}"),
        html.number("–" if square is None else f"{square:.4g}{unit}"),
        html.number(f"{first[0]:.4g}{unit}" if first else "–", dim=True),
    ]


def _newest_picture(pictures: Mapping[int, Path]) -> str:
    if not pictures:
        return ""
    step = max(pictures)
    with Image.open(pictures[step]) as picture:
        array = np.asarray(picture.convert("RGB"))
    text = f"past, present, true future and what was foreseen at step {step:,}"
    return f'<h3>{escape(sentence(text))}</h3><div class="figure">{html.picture(array, text)}</div>'

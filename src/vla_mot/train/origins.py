"""Where the samples of a run come from, as far as its numbers tell them apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MOST_DATASETS = 64
"""A mixture of more datasets is told by its groups: nobody reads a thousand curves."""


@dataclass(frozen=True)
class Origin:
    """One dataset of a mixture, at the place that `Batch.origin[:, 0]` gives.

    embodiment: the name of its robot. cameras: the robot's, by slot.
    """

    dataset: str
    group: str
    embodiment: str
    cameras: tuple[str | None, ...] = ()


def labels(origins: Sequence[Origin]) -> Mapping[str, tuple[int, ...]]:
    """What losses are told for → the places of its datasets: `dataset/<name>` (or `group/<name>`, where there are more
    than `MOST_DATASETS`) and `embodiment/<name>`."""
    kind = "dataset" if len(origins) <= MOST_DATASETS else "group"
    found: dict[str, list[int]] = {}
    for place, origin in enumerate(origins):
        found.setdefault(f"{kind}/{getattr(origin, kind)}", []).append(place)
    for place, origin in enumerate(origins):
        found.setdefault(f"embodiment/{origin.embodiment}", []).append(place)
    return {name: tuple(places) for name, places in found.items()}

"""Normalization statistics of an embodiment: of states over frames, of actions over real chunk windows.

Every dataset is counted by itself (`vla_mot.data.partial_statistics`), and the parts are merged: moments by Chan's
update, quantiles by the weighted sum of the distribution functions.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import reduce

from vla_mot.data.partial_statistics import Chunks, FeaturePartial, Partial, count_dataset
from vla_mot.data.quantiles import pooled_quantiles
from vla_mot.data.source import Source
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.moments import Moments
from vla_mot.robots.normalization import QUANTILES, CountedDataset, FeatureStatistics, Origin, Statistics
from vla_mot.robots.robot import layout_of


def compute_statistics(
    source: Source, chunk_size: int, action_mode: str, episodes: Sequence[int] | None = None
) -> Statistics:
    """Statistics of the given episodes (all by default) of one dataset, accumulated in float64.

    The action counts every real step of every window of `chunk_size` steps that starts at one of the frames, in
    mode `delta` after subtracting the state at the window's start. Steps past an episode's end are not counted.
    Raises ConfigError for an unknown mode, a chunk below one step, or no episodes.
    """
    chunks = Chunks(action_mode, chunk_size)
    counted = count_dataset(source, chunks, episodes)
    return merge_partials(source.embodiment, chunks, {source.root.name: counted})


def merge_partials(embodiment: Embodiment, chunks: Chunks, partials: Mapping[str, Partial]) -> Statistics:
    """Statistics of an embodiment from its datasets' partials by name, each row counted once.

    Merged in the order of the names, so that the same parts give the same bits. All must have been counted for these
    chunks and features of the same widths.
    """
    parts = [partials[name] for name in sorted(partials)]
    return Statistics(
        embodiment=embodiment.name,
        action_mode=chunks.action_mode,
        chunk_size=chunks.chunk_size,
        state=_merged([part.state for part in parts]),
        action=_merged([part.action for part in parts]),
        computed_on=_origin(partials, layout_of(embodiment, chunks.action_mode)),
    )


def _merged(parts: Sequence[FeaturePartial]) -> FeatureStatistics:
    rows = reduce(Moments.merged, (part.moments for part in parts))
    counts = [part.moments.count for part in parts]
    values = pooled_quantiles([part.knots for part in parts], counts, list(QUANTILES.values()))
    return FeatureStatistics.of(rows, dict(zip(QUANTILES, values, strict=True)))


def _origin(partials: Mapping[str, Partial], layout: str) -> Origin:
    keys = "\n".join(sorted(partial.key for partial in partials.values()))
    return Origin(
        content_hash=hashlib.blake2b(keys.encode(), digest_size=16).hexdigest(),
        datasets=tuple(
            CountedDataset(name, partials[name].content_hash, partials[name].frames, partials[name].episodes)
            for name in sorted(partials)
        ),
        layout=layout,
    )

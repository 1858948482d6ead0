"""What one dataset contributes to the statistics of its embodiment: moments and quantile knots, mergeable.

State rows are the frames of the chosen episodes. Action rows are the steps of their windows: from every frame, the
next `chunk_size` actions that lie inside the episode, in mode `delta` less the state at the window's start. Rows are
visited a block at a time, so that what is held beside the dataset is small, however long it is.

Legend: `N` frames, `E` chosen episodes, `n` rows of a block, `K` knots, `S`/`D` real state and action dims.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vla_mot.data.quantiles import knots_of, spread_ranks
from vla_mot.data.source import Source, Tables
from vla_mot.errors import ConfigError
from vla_mot.options import at_least
from vla_mot.robots.actions import DELTA, require_action_mode, to_delta
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.moments import Moments, moments

LAYOUT = 1
"""Raise when a partial of the same dataset would come out otherwise, or is stored otherwise."""
_BLOCK = 2**16
"""Rows that are looked at in one go."""

Progress = Callable[[float], None]
"""Called now and then with the part of the work that is done, up to 1."""


@dataclass(frozen=True)
class Chunks:
    """The windows whose actions are counted: their mode, `delta` or `abs`, and their length in steps."""

    action_mode: str
    chunk_size: int

    def __post_init__(self) -> None:
        require_action_mode(self.action_mode)
        at_least(1, {"chunk_size": self.chunk_size})


@dataclass(frozen=True)
class FeaturePartial:
    """Of one feature's rows in one dataset: their moments, and their quantile knots `(K, D)` float32."""

    moments: Moments
    knots: Tensor


@dataclass(frozen=True)
class Partial:
    """Of one dataset. content_hash: of its tables. key: of everything that decides the numbers, see `partial_key`.

    frames, episodes: that were counted.
    """

    content_hash: str
    key: str
    frames: int
    episodes: int
    state: FeaturePartial
    action: FeaturePartial


def partial_key(
    content_hash: str, embodiment: Embodiment, chunks: Chunks, episodes: Sequence[int] | Tensor
) -> str:
    """Hash of what a partial is computed from: the dataset's tables, its features, the windows and the episodes.

    content_hash: of the tables. Names, units and cameras of the embodiment do not matter, nor where the dataset lies.
    """
    relative = chunks.action_mode == DELTA
    spec = {
        "layout": LAYOUT,
        "dataset": content_hash,
        "state": [[field.key, len(field.names)] for field in embodiment.state],
        "action": [[field.key, list(field.delta) if relative else len(field.names)] for field in embodiment.action],
        "mode": chunks.action_mode,
        "chunk": chunks.chunk_size,
        "episodes": torch.as_tensor(episodes).tolist(),
    }  # fmt: skip
    return hashlib.blake2b(json.dumps(spec).encode(), digest_size=16).hexdigest()


def chosen_episodes(root: Path, count: int, episodes: Sequence[int] | None) -> Tensor:
    """Those of a dataset's `count` episodes as `(E,)` int64, all for None. Raises ConfigError for none or others."""
    chosen = torch.as_tensor(range(count) if episodes is None else list(episodes)).long()
    if not len(chosen):
        raise ConfigError("statistics need at least one episode.")
    if bool((chosen < 0).any()) or int(chosen.max()) >= count:
        raise ConfigError(f"{root} has {count} episodes; episode {int(chosen.max())} was chosen.")
    return chosen


def count_dataset(
    source: Source, chunks: Chunks, episodes: Sequence[int] | None = None, progress: Progress | None = None
) -> Partial:
    """Count the given episodes of a dataset (all by default). Raises ConfigError when there is none."""
    assert len(source.held) == source.num_frames, "statistics are counted over whole datasets"
    chosen = chosen_episodes(source.root, source.num_episodes, episodes)
    digest = Tables.identify(source.root, source.embodiment).digest
    rows = _Rows(source, chunks, chosen)
    state = moments(rows.states())
    action = moments(rows.actions(progress or (lambda part: None)))
    if state is None or action is None:
        raise ConfigError(f"the chosen episodes of {source.root} have no frames.")
    return Partial(
        content_hash=digest,
        key=partial_key(digest, source.embodiment, chunks, chosen),
        frames=state.count,
        episodes=len(chosen),
        state=FeaturePartial(state, knots_of(rows.sampled_states())),
        action=FeaturePartial(action, knots_of(rows.sampled_actions())),
    )


class _Rows:
    """The rows of both features. Those of the action come in the order of k, the step in the window: all first steps,
    all second steps, …; under each k in the order of the frames at which the windows start."""

    def __init__(self, source: Source, chunks: Chunks, chosen: Tensor) -> None:
        self.source, self.chunks = source, chunks
        self.starts, ends = source.bounds[chosen].unbind(1)
        self.lengths = ends - self.starts

    def states(self) -> Iterator[Tensor]:
        """`(n, S)` per block."""
        for ranks in self._blocks(self._reaching(0)):
            yield self.source.state[self._frames(0, ranks)]

    def actions(self, progress: Progress) -> Iterator[Tensor]:
        """`(n, D)` float64 per k and block."""
        counts = [self._reaching(k) for k in range(self.chunks.chunk_size)]
        done, total = 0, sum(counts)
        for k, count in enumerate(counts):
            for ranks in self._blocks(count):
                yield self._steps(k, ranks)
                done += len(ranks)
                progress(done / total)

    def sampled_states(self) -> Tensor:
        """At most `SAMPLE` rows, evenly spread over the frames."""
        return self.source.state[self._frames(0, spread_ranks(self._reaching(0)))]

    def sampled_actions(self) -> Tensor:
        """At most `SAMPLE` rows, evenly spread over the frames of every k."""
        counts = torch.tensor([self._reaching(k) for k in range(self.chunks.chunk_size)])
        behind = counts.cumsum(0)
        ranks = spread_ranks(int(behind[-1]))
        owners = torch.searchsorted(behind, ranks, right=True)
        return torch.cat([
            self._steps(k, ranks[owners == k] - (behind[k] - counts[k])) for k in owners.unique().tolist()
        ])  # fmt: skip

    def _reaching(self, k: int) -> int:
        """How many windows have a step k."""
        return int((self.lengths - k).clamp(min=0).sum())

    @staticmethod
    def _blocks(count: int) -> Iterator[Tensor]:
        for at in range(0, count, _BLOCK):
            yield torch.arange(at, min(at + _BLOCK, count))

    def _frames(self, k: int, ranks: Tensor) -> Tensor:
        """The frames at which the windows of these ranks start, among those that have a step k."""
        counts = (self.lengths - k).clamp(min=0)
        behind = counts.cumsum(0)
        episode = torch.searchsorted(behind, ranks, right=True)
        return self.starts[episode] + ranks - (behind - counts)[episode]

    def _steps(self, k: int, ranks: Tensor) -> Tensor:
        start = self._frames(k, ranks)
        actions = self.source.action[start + k].double()
        if self.chunks.action_mode == DELTA:
            state = self.source.state[start].double()
            actions = to_delta(actions[:, None], state, self.source.embodiment.delta_mask)[:, 0]
        return actions

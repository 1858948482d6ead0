import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.data.conftest import VIEW
from vla_mot.batch import Batch
from vla_mot.data.assignment import Piece, assign_exact
from vla_mot.data.frames import FramesConfig
from vla_mot.data.loader import Loader
from vla_mot.data.mixture import resolve_mixture
from vla_mot.data.mixture_config import MixtureConfig
from vla_mot.data.recipe import Recipe
from vla_mot.data.stream import SampleStream, StreamConfig
from vla_mot.data.windows import WindowConfig
from vla_mot.errors import ConfigError

STEPS = 12  # of 16 samples: more than three epochs of 60


@pytest.fixture(scope="module")
def recipe(recording, cache, processor):
    mixture = resolve_mixture(MixtureConfig(recording.root, embodiment=recording.embodiment))
    frames = FramesConfig(folder=cache.folder.parent)
    return Recipe(mixture.entries, (WindowConfig(5, 6, VIEW),), {"toy": processor}, frames)


@pytest.fixture(scope="module")
def build(recipe):
    def made(global_batch=16, shards=1, **options) -> Loader:
        assignment = assign_exact([1.0], [1.0], ["toy"], shards)
        return Loader(StreamConfig(recipe, assignment, global_batch, **options))

    return made


def batch_of(loader: Loader, step: int) -> Batch:
    return next(loader.batches(step, step + 1, prefetch=0))


def samples(loader: Loader, step: int) -> torch.Tensor:
    return batch_of(loader, step).origin[:, 2]


def same(a: Batch, b: Batch) -> bool:
    names = ("future", "actions", "action_mask", "index", "origin")
    pairs = [(getattr(a, name), getattr(b, name)) for name in names]
    pairs += [
        (getattr(a.observation, k), getattr(b.observation, k)) for k in ("images", "state", "token_ids")
    ]
    return all(torch.equal(x, y) for x, y in pairs)


def test_every_epoch_has_every_sample_once_in_a_fresh_order(build):
    loader = build()
    order = torch.cat([samples(loader, step) for step in range(15)]).reshape(4, 60)  # 15 · 16 = 4 · 60
    assert all(sorted(epoch.tolist()) == list(range(60)) for epoch in order)
    assert len({tuple(epoch.tolist()) for epoch in order}) == 4


def test_the_order_of_a_single_dataset_is_that_of_the_published_figures(build):
    """README and docs were measured with it: another order is another result."""
    whole = np.concatenate([np.random.default_rng([3, epoch]).permutation(60) for epoch in range(2)])
    loader = build(seed=3)
    assert samples(loader, 0).tolist() == whole[:16].tolist()
    assert samples(loader, 4).tolist() == whole[64:80].tolist()


def test_a_batch_may_be_larger_than_the_dataset(build):
    assert set(samples(build(120), 3).bincount(minlength=60).tolist()) == {2}


def test_the_index_counts_samples_of_the_whole_run(build):
    assert batch_of(build(), 3).index.tolist() == list(range(48, 64))


@pytest.mark.parametrize("shards", [2, 4, 16])
def test_two_ranks_together_equal_one(build, shards):
    one, ranks = (
        build(shards=shards),
        [build(shards=shards, rank=rank, world_size=2) for rank in range(2)],
    )
    for step in range(5):
        halves = [batch_of(rank, step) for rank in ranks]
        assert all(half.batch_size == 8 for half in halves)
        whole = batch_of(one, step)
        assert same(whole[:8], halves[0])
        assert same(whole[8:], halves[1])


def test_shards_share_an_epoch(build):
    """Two pieces of one dataset: each sample once in an epoch of both, wherever it is drawn."""
    loader = build(12, shards=2)
    drawn = torch.cat([samples(loader, step) for step in range(5)])
    assert sorted(drawn.tolist()) == list(range(60))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_resumed_equals_uninterrupted(build, prefetch):
    whole = list(build(shards=4).batches(0, STEPS, prefetch))
    resumed = list(build(shards=4).batches(7, STEPS, prefetch))
    assert len(whole) == STEPS
    assert all(same(a, b) for a, b in zip(whole[7:], resumed, strict=True))


def test_the_seed_decides_the_order(build):
    assert torch.equal(samples(build(seed=1), 4), samples(build(seed=1), 4))
    assert not torch.equal(samples(build(seed=1), 4), samples(build(seed=2), 4))


def test_the_stream_does_not_end_and_closing_it_ends_its_thread(build):
    from tests.data.test_loader import prefetch_threads

    stream = build(4).batches(prefetch=2)
    assert len(list(itertools.islice(stream, 40))) == 40
    assert len(prefetch_threads()) == 1
    stream.close()
    assert prefetch_threads() == []


def test_an_error_names_its_step(build, monkeypatch):
    loader = build()
    whole = SampleStream._batch

    def failing(stream, read):
        if read[0][0][0] == 32:
            raise RuntimeError("torn picture")
        return whole(stream, read)

    monkeypatch.setattr(SampleStream, "_batch", failing)
    batches = loader.batches(prefetch=2)
    assert [next(batches).index[0].item() for _ in range(2)] == [0, 16]
    with pytest.raises(RuntimeError, match="torn picture") as caught:
        next(batches)
    assert caught.value.__notes__ == ["while preparing the batch of step 2"]


def test_the_samples_of_a_batch_are_described_by_frame_and_episode(build, source):
    loader = build(3)
    frames = sorted(samples(loader, 0).tolist())
    starts = source.bounds[:, 0].tolist()
    episodes = sorted({sum(start <= frame for start in starts) - 1 for frame in frames})
    told = f"frames {', '.join(map(str, frames))} of dataset 'toy', from its episodes {', '.join(map(str, episodes))}"
    assert loader.describe(batch_of(loader, 0)) == told
    wide = build(40)
    assert "… (40 in all)" in wide.describe(batch_of(wide, 0))


def test_what_ranks_and_workers_cannot_share_is_refused(build):
    with pytest.raises(ConfigError, match="global batch of 16 cannot be shared by 3 ranks"):
        build(world_size=3)
    with pytest.raises(ConfigError, match=r"rank must lie in \[0, 2\), got 2"):
        build(rank=2, world_size=2)
    with pytest.raises(ConfigError, match=r"data.shards=1 cannot be shared evenly by 2 workers"):
        build(world_size=2)
    with pytest.raises(ConfigError, match=r"a global batch of 16 and data.shards=3 do not divide"):
        build(shards=3)


def test_a_thin_piece_still_gives_a_sample(recipe, build):
    assignment = replace(assign_exact([1.0], [1.0], ["toy"], 1), shards=((Piece(0, 0.5, 0.5 + 1e-9, 1.0),),))
    loader = Loader(StreamConfig(recipe, assignment, 4))
    assert set(samples(loader, 0).tolist()) == {30}

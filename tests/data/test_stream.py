import itertools
import threading

import pytest
import torch

from tests.data.conftest import VIEW
from vla_mot.batch import Batch
from vla_mot.data.stream import BatchStream
from vla_mot.data.windows import Collate, WindowConfig, WindowDataset
from vla_mot.errors import ConfigError

STEPS = 12  # of 16 samples: more than three epochs of 60


@pytest.fixture(scope="module")
def build(source, cache, processor):
    dataset = WindowDataset(source, cache, WindowConfig(5, 6, VIEW))
    collate = Collate(processor, source.tasks)
    return lambda global_batch=16, **options: BatchStream(dataset, collate, global_batch, **options)


def same(a: Batch, b: Batch) -> bool:
    pairs = [(a.future, b.future), (a.actions, b.actions), (a.action_mask, b.action_mask), (a.index, b.index)]
    pairs += [
        (getattr(a.observation, k), getattr(b.observation, k)) for k in ("images", "state", "token_ids")
    ]
    return all(torch.equal(x, y) for x, y in pairs)


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batch-prefetch"]


def test_every_epoch_has_every_sample_once_in_a_fresh_order(build):
    stream = build()
    order = torch.cat([stream.samples(step) for step in range(15)]).reshape(4, 60)  # 15 · 16 = 4 · 60
    assert all(sorted(epoch.tolist()) == list(range(60)) for epoch in order)
    assert len({tuple(epoch.tolist()) for epoch in order}) == 4


def test_a_batch_may_be_larger_than_the_dataset(build):
    assert set(build(120).samples(3).bincount(minlength=60).tolist()) == {2}


def test_the_index_counts_samples_of_the_whole_run(build):
    assert build().batch(3).index.tolist() == list(range(48, 64))


def test_two_ranks_together_equal_one(build):
    one, ranks = build(), [build(rank=rank, world_size=2) for rank in range(2)]
    for step in range(5):
        halves = [rank.batch(step) for rank in ranks]
        assert all(half.batch_size == 8 for half in halves)
        whole = one.batch(step)
        assert same(whole[:8], halves[0])
        assert same(whole[8:], halves[1])


@pytest.mark.parametrize("prefetch", [0, 2])
def test_resumed_equals_uninterrupted(build, prefetch):
    whole = list(build().batches(0, STEPS, prefetch))
    resumed = list(build().batches(7, STEPS, prefetch))
    assert len(whole) == STEPS
    assert all(same(a, b) for a, b in zip(whole[7:], resumed, strict=True))


def test_the_seed_decides_the_order(build):
    assert torch.equal(build(seed=1).samples(4), build(seed=1).samples(4))
    assert not torch.equal(build(seed=1).samples(4), build(seed=2).samples(4))


def test_the_stream_does_not_end_and_closing_it_ends_its_thread(build):
    stream = build(4).batches(prefetch=2)
    assert len(list(itertools.islice(stream, 40))) == 40
    assert len(prefetch_threads()) == 1
    stream.close()
    assert prefetch_threads() == []


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_arrives_in_order_and_names_its_step(build, prefetch):
    stream = build()
    whole = stream.collate

    def failing(windows, index):
        if index[0] == 32:
            raise RuntimeError("torn picture")
        return whole(windows, index)

    stream.collate = failing
    batches = stream.batches(prefetch=prefetch)
    assert [next(batches).index[0].item() for _ in range(2)] == [0, 16]
    with pytest.raises(RuntimeError, match="torn picture") as caught:
        next(batches)
    assert caught.value.__notes__ == [f"while preparing the batch of step 2: {stream.describe(2)}"]
    assert prefetch_threads() == []


def test_the_samples_of_a_step_are_described_by_frame_and_episode(build):
    stream = build(3)
    frames = sorted(stream.dataset.frames[stream.samples(0)].tolist())
    starts = stream.dataset.source.bounds[:, 0].tolist()
    episodes = sorted({sum(start <= frame for start in starts) - 1 for frame in frames})
    told = f"frames {', '.join(map(str, frames))} of the dataset, from its episodes {', '.join(map(str, episodes))}"
    assert stream.describe(0) == told
    assert "… (40 in all)" in build(40).describe(0)


def test_a_batch_that_ranks_cannot_share_is_refused(build):
    with pytest.raises(ConfigError, match="global batch of 16 cannot be shared by 3 ranks"):
        build(world_size=3)
    with pytest.raises(ConfigError, match=r"rank must lie in \[0, 2\), got 2"):
        build(rank=2, world_size=2)

from dataclasses import replace

import pytest
import torch

from tests.data.conftest import LENGTHS, TASKS, VIEW, toy_embodiment
from vla_mot.data.source import Source
from vla_mot.data.statistics import compute_statistics
from vla_mot.data.windows import Collate, WindowConfig, WindowDataset
from vla_mot.errors import ConfigError
from vla_mot.robots.robot import Robot

L, M = 5, 6


@pytest.fixture(scope="module")
def dataset(source, cache):
    return WindowDataset(source, cache, WindowConfig(L, M, VIEW))


def naive_window(source, cache, t):
    """One window with plain comparisons."""
    start, end = next((a, b) for a, b in source.bounds.tolist() if a <= t < b)
    times = [t - M if t - M >= start else start, t, t + M if t + M < end else end - 1]
    steps = [min(t + k, end - 1) for k in range(L)]
    mask = [t + k < end for k in range(L)]
    return cache.gather(torch.tensor(times)), (t - M >= start, t + M < end), source.action[steps], mask


def test_every_window_equals_the_naive_one(dataset, source, cache):
    windows = dataset.__getitems__(range(len(dataset)))
    assert len(dataset) == len(windows) == sum(LENGTHS)
    for t in range(len(dataset)):
        images, inside, actions, mask = naive_window(source, cache, t)
        assert torch.equal(windows.images[t], images)
        assert (windows.history_valid[t], windows.future_valid[t]) == inside
        assert torch.equal(windows.actions[t], actions)
        assert windows.step_mask[t].tolist() == mask
        assert torch.equal(windows.state[t], source.state[t])
        assert windows.tasks[t] == source.task(t)
        assert windows.origin[t, 2] == t


def test_the_edges_of_an_episode(dataset, source, cache):
    first, last = 20, 32  # of the second episode
    at_start, at_end = dataset[first], dataset[last]
    assert torch.equal(at_start.images[0, 0], at_start.images[0, 1])  # no history yet
    assert torch.equal(at_start.images[0, 0], cache.gather(torch.tensor(first)))
    assert (at_start.history_valid.tolist(), at_start.future_valid.tolist()) == ([False], [True])
    assert torch.equal(at_end.images[0, 2], cache.gather(torch.tensor(last)))
    assert at_end.future_valid.tolist() == [False]
    assert at_end.step_mask.tolist() == [[True, False, False, False, False]]
    assert torch.equal(at_end.actions[0], source.action[last].expand(L, -1))
    assert at_end.tasks == (TASKS[1],)


def test_chosen_episodes_only(source, cache):
    chosen = WindowDataset(source, cache, WindowConfig(L, M, VIEW), episodes=[3, 1])
    assert chosen.__getitems__(range(len(chosen))).origin[:, 2].tolist() == [*range(53, 60), *range(20, 33)]
    assert chosen[-1].origin.tolist() == [[0, 1, 32]]
    with pytest.raises(IndexError):
        chosen[20]


def test_frames_and_episodes_of_all_samples(source, cache):
    chosen = WindowDataset(source, cache, WindowConfig(L, M, VIEW), episodes=[3, 1])
    origin = chosen.__getitems__(torch.arange(len(chosen))).origin
    assert torch.equal(chosen.episodes, origin[:, 1])
    assert torch.equal(chosen.frames, origin[:, 2])
    assert [chosen.episode(i) for i in range(20)] == [3] * 7 + [1] * 13
    assert chosen.__getitems__([19, 0, 6, 7, 0]).origin[:, 2].tolist() == [32, 53, 59, 20, 53]
    for sample in (-1, 20):
        with pytest.raises(IndexError):
            chosen.__getitems__([3, sample])
        with pytest.raises(IndexError):
            chosen.episode(sample)


@pytest.mark.parametrize("part", [range(20, 33), range(20, 60), range(0, 60)])
def test_windows_of_a_dataset_that_is_held_in_part(recording, dataset, cache, part):
    source = Source.open(recording.root, recording.embodiment, keep=lambda bounds: part)
    partly = WindowDataset(source, cache, WindowConfig(L, M, VIEW))
    a, b = partly.__getitems__(part), dataset.__getitems__(part)
    for name in ("images", "future_valid", "actions", "step_mask", "state", "origin"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    assert a.tasks == b.tasks
    for sample in {0, 19, 33, 59} - set(part):
        with pytest.raises(AssertionError, match="are held"):
            partly.__getitems__([part.start, sample])


def test_torchs_own_loader_reads_it(dataset, processor, source):
    loader = torch.utils.data.DataLoader(dataset, batch_size=16, collate_fn=Collate(processor))
    assert [batch.batch_size for batch in loader] == [16, 16, 16, 12]


def test_a_batch_has_the_models_shapes_and_masks(dataset, processor, source):
    rows = [0, 19, 25, 59]
    windows = dataset.__getitems__(rows)
    batch = Collate(processor)(windows, torch.tensor([100, 101, 102, 103]))
    assert batch.observation.images.shape == (4, 3, 2, 3, *VIEW)
    assert batch.observation.images.dtype == batch.future.dtype == torch.uint8
    assert batch.observation.view_mask.tolist() == [[True, False, True]] * 4
    assert torch.equal(batch.observation.images[:, 0], windows.images[:, :2, 0])
    assert torch.equal(batch.observation.images[:, 2], windows.images[:, :2, 1])
    assert torch.equal(batch.future[:, 2], windows.images[:, 2, 1])
    assert (batch.observation.images[:, 1] == 255).all()
    assert (batch.future[:, 1] == 255).all()
    assert batch.future_mask.tolist() == [[True, False, True], [False] * 3, [True, False, True], [False] * 3]
    assert torch.equal(batch.action_mask[..., :3], windows.step_mask[..., None].expand(-1, -1, 3))
    assert not batch.action_mask[..., 3:].any()
    torch.testing.assert_close(processor.physical(batch.actions, windows.state), windows.actions)
    assert batch.index.tolist() == [100, 101, 102, 103]


def test_without_actions_only_the_future_is_learned(recording, cache, processor):
    embodiment = toy_embodiment(state=[], action=[])
    watching = Source.open(recording.root, embodiment)
    watcher = replace(processor, robot=Robot(embodiment, compute_statistics(watching, L, "delta")))
    windows = WindowDataset(watching, cache, WindowConfig(L, M, VIEW)).__getitems__([0, 25])
    batch = Collate(watcher)(windows)
    assert batch.actions.shape == (2, L, 6)
    assert not batch.action_mask.any()
    assert not batch.observation.state.any()
    assert batch.future_mask[:, 0].all()


def test_tokens_are_those_of_the_tokenizer(dataset, processor, source):
    windows, asked = dataset.__getitems__([0, 25, 1]), []

    def tokenize(texts):
        asked.extend(texts)
        return processor.tokenize(texts)

    collate = Collate(replace(processor, tokenize=tokenize))
    for _ in range(2):
        mine = collate(windows).observation
        texts = [
            bytes(ids[mask].tolist()).decode()
            for ids, mask in zip(mine.token_ids, mine.token_mask, strict=True)
        ]
        assert texts == list(windows.tasks)
    assert asked == list(TASKS)  # each once


def test_what_does_not_fit_is_refused(source, cache):
    with pytest.raises(ConfigError, match=r"these windows need \(60, 2, 3, 8, 8\)"):
        WindowDataset(source, cache, WindowConfig(L, M, (8, 8)))
    with pytest.raises(ConfigError, match="no episode"):
        WindowDataset(source, cache, WindowConfig(L, M, VIEW), episodes=[])
    with pytest.raises(ConfigError, match="at least 1, got 0 and 6"):
        WindowConfig(0, M, VIEW)

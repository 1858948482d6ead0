import subprocess
import sys

import pytest
import torch

from tests.data.conftest import VIEW
from vla_mot.data.frame_cache import FrameCache
from vla_mot.data.opened import OpenDatasets
from vla_mot.errors import ConfigError, DatasetError


class Item:
    def __init__(self, number: int, open_now: set[int]) -> None:
        self.number, self.open_now = number, open_now
        open_now.add(number)

    def close(self) -> None:
        self.open_now.remove(self.number)


def test_datasets_open_at_first_use_and_the_oldest_is_closed():
    now: set[int] = set()
    datasets = OpenDatasets(lambda number: Item(number, now), most=2)
    assert (now, datasets.opened) == (set(), 0)
    one = datasets.get(1)
    assert datasets.get(2).number == 2
    assert datasets.get(1) is one
    datasets.get(3)
    assert (now, datasets.opened, len(datasets)) == ({1, 3}, 3, 2)
    assert datasets.get(2).number == 2
    assert (now, datasets.opened) == ({2, 3}, 4)
    datasets.close()
    assert (now, len(datasets)) == (set(), 0)


def test_there_are_never_more_than_allowed_not_even_while_one_opens():
    now: set[int] = set()

    def open_one(number):
        assert len(now) < 3
        return Item(number, now)

    datasets = OpenDatasets(open_one, most=3)
    for number in range(10):
        datasets.get(number)
    assert now == {7, 8, 9}


def test_what_cannot_be_opened_is_not_counted_and_may_be_asked_for_again():
    broken = [True]

    def open_one(number):
        if broken:
            broken.pop()
            raise DatasetError("not now")
        return Item(number, set())

    datasets = OpenDatasets(open_one, most=1)
    with pytest.raises(DatasetError, match="not now"):
        datasets.get(5)
    assert (datasets.opened, datasets.get(5).number, datasets.opened) == (0, 5, 1)


def test_at_least_one_must_be_open():
    with pytest.raises(ConfigError, match="datasets that may be open must be at least 1, got 0"):
        OpenDatasets(lambda number: Item(number, set()), most=0)


def test_a_closed_cache_says_so(source, tmp_path):
    cache = FrameCache.open(source, VIEW, tmp_path)
    kept = cache.gather(torch.tensor([1]))
    cache.close()
    assert kept.any()
    with pytest.raises(ValueError, match="was closed"):
        cache.gather(torch.tensor([1]))


MANY = """
import resource, sys
from pathlib import Path
import torch
from vla_mot.data.frame_cache import FrameCache
from vla_mot.data.opened import OpenDatasets
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
folders = [Path(line) for line in sys.stdin.read().split()]
datasets = OpenDatasets(lambda number: FrameCache(folders[number]), most=int(sys.argv[1]))
first = [int(datasets.get(number).gather(torch.tensor([0])).sum()) for number in range(len(folders)) for _ in "ab"]
again = [int(datasets.get(number).gather(torch.tensor([0])).sum()) for number in range(len(folders)) for _ in "ab"]
print(first == again, datasets.opened)
"""


def many(cache, most: int) -> subprocess.CompletedProcess:
    command, folders = [sys.executable, "-c", MANY, str(most)], [str(cache.folder)] * 120
    return subprocess.run(command, input="\n".join(folders), capture_output=True, text=True)


def test_more_datasets_than_descriptors_are_read(cache):
    """120 maps where a process may have 64 descriptors; without the bound it cannot."""
    done = many(cache, 16)
    assert done.stdout == "True 240\n", done.stderr
    assert "Too many open files" in many(cache, 120).stderr

"""Who a process is among those that train together, as its launcher tells."""

import subprocess
import sys

import pytest
import torch.distributed as dist
from tests.conftest import REPOSITORY

from vla_mot import groups
from vla_mot.errors import ConfigError
from vla_mot.train.world import World, join, kept_mesh, launched_ranks, shard_mesh


def test_alone_without_a_launcher(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join("cpu", None) as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must hold a whole number, got 'two'"),
        (
            {"WORLD_SIZE": "2", "RANK": "0"},
            "LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set; start them with torchrun",
        ),
    ],
)
def test_a_launcher_that_tells_half_is_named(monkeypatch, told, message):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message), join("cpu", None):
        pass


def test_ranks_that_do_not_divide_into_copies_are_refused():
    with pytest.raises(
        ConfigError, match=r"6 ranks do not divide into copies of train\.parallel\.shard_ranks=4"
    ):
        shard_mesh(World(size=6), 4)


def test_a_number_of_the_launcher(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert launched_ranks() == 16


@pytest.mark.parametrize(
    ("restarts", "shared", "warned"), [(3, True, True), (0, True, False), (3, False, False)]
)
def test_ranks_that_would_meet_in_the_store_of_those_before_are_warned(
    monkeypatch, caplog, restarts, shared, warned
):
    """Nobody else comes, so the meeting itself fails."""
    told = {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
    told |= {"TORCHELASTIC_MAX_RESTARTS": restarts, "TORCHELASTIC_USE_AGENT_STORE": shared}
    for name, value in told.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(dist.DistError), join("cpu", 0.2):
        pass
    assert ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in caplog.text) == warned


@pytest.fixture
def alone():
    """A process group of this process only."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_lines_beside_and_groups_of_a_mesh_last_to_the_end(alone, monkeypatch):
    """What happens otherwise, rarely: `tests.train.parting`."""
    kept = set()
    monkeypatch.setattr(groups, "_kept", kept)
    line = World(size=2).beside().group
    assert kept == {line}
    mesh = kept_mesh("cpu", (1, 1), ("copies", "shards"))
    assert kept == {line, *mesh.get_all_groups()} != {line}
    kept.clear()
    assert set(shard_mesh(World(), None).get_all_groups()) == kept != set()


@pytest.mark.multiprocess
@pytest.mark.slow
def test_ranks_that_part_right_after_an_exchange_end():
    """Without the group being kept, a hundred lives were lived in none of five tries."""
    words = [sys.executable, "-m", "tests.train.parting", "100"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "100\n"

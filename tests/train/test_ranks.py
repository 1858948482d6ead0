"""Two ranks equal one: gradients, losses, weights, and checkpoints that either writes for the other."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import REPOSITORY
from tests.train.ranks import ADAPTED, ALONE, RESUMED, SCENARIOS, alone_of, findings, ranked
from tests.train.test_loop import assert_bitwise_equal

from vla_mot.infer.policy import Policy
from vla_mot.train.adapters import merged
from vla_mot.train.checkpoint import find_checkpoint
from vla_mot.train.world import World

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]
Found = dict[str, Any]
CLOSE = {kind: {"rtol": 1e-3, "atol": 2e-3 if kind == "muon" else 2e-4} for kind in ALONE}
"""Of weights after ten steps at 3e-3. Muon orthogonalises in bfloat16, which rounds sharded matrices otherwise."""

LOSSES = {kind: 2e-3 if kind == "muon" else 2e-4 for kind in ALONE}
"""Of what is logged, relative."""


def told(record: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in record.items() if key != "kind"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Found]]:
    """The run of one rank, by what it computes."""
    made = {}
    for name, changes in ALONE.items():
        folder = tmp_path_factory.mktemp("alone")
        made[name] = folder, findings(ranked(folder, World(), **changes))
    return made


def launched(alone: Path, output: Path, names: Iterable[str], size: int) -> Path:
    """Let `size` ranks do the named scenarios; returns where they left what they found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    told |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "tests.train.ranks", str(alone), str(output), *names]
    ranks = [
        subprocess.Popen(
            command, cwd=REPOSITORY, env=os.environ | told | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(size)
    ]
    assert [rank.wait(timeout=500) for rank in ranks] == [0] * size
    return output


@pytest.fixture(scope="module")
def together(alone: dict[str, tuple[Path, Found]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks left what they found."""
    output = tmp_path_factory.mktemp("together")
    return launched(alone["adamw"][0], output, [*SCENARIOS, *RESUMED], 2)


def found(together: Path, name: str) -> Found:
    return torch.load(together / f"{name}.pt")


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_gradient_is_that_of_twice_the_batch(
    together: Path, alone: dict[str, tuple[Path, Found]], name: str
) -> None:
    expected = alone[alone_of(name)][1]["gradient"]
    got = found(together, name)["gradient"]
    assert got.keys() == expected.keys()
    for weight, gradient in expected.items():
        assert (got[weight] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, weight


@pytest.mark.parametrize("name", SCENARIOS)
def test_ten_steps_are_the_same(together: Path, alone: dict[str, tuple[Path, Found]], name: str) -> None:
    expected, got = alone[alone_of(name)][1], found(together, name)
    assert len(got["log"]) == len(expected["log"]) == 12
    for mine, theirs in zip(got["log"], expected["log"], strict=True):
        assert mine["kind"] == theirs["kind"]
        assert told(mine) == pytest.approx(told(theirs), rel=LOSSES[alone_of(name)], abs=1e-6)
    for weight, value in expected["weights"].items():
        torch.testing.assert_close(got["weights"][weight], value, **CLOSE[alone_of(name)])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_of_one_rank_goes_on_on_two(
    together: Path, alone: dict[str, tuple[Path, Found]], strategy: str
) -> None:
    expected, got = alone["adamw"][1], found(together, f"resumed {strategy}")
    for weight, value in expected["weights"].items():
        torch.testing.assert_close(got["weights"][weight], value, **CLOSE["adamw"])


@pytest.mark.parametrize("name", ["ddp", "fsdp", "fsdp asynchronous", "fsdp muon", "fsdp adapted"])
def test_a_run_of_two_ranks_goes_on_on_one(
    together: Path, alone: dict[str, tuple[Path, Found]], tmp_path: Path, name: str
) -> None:
    kind = alone_of(name)
    run = ranked(tmp_path, World(), **ALONE[kind])
    run.resume(find_checkpoint(together / name / "checkpoints" / "000005"))
    assert run.progress.step == 5
    got = findings(run)
    for weight, value in alone[kind][1]["weights"].items():
        torch.testing.assert_close(got["weights"][weight], value, **CLOSE[kind])


def test_what_adapts_and_what_is_insulated_is_another_gradient(alone: dict[str, tuple[Path, Found]]) -> None:
    plain, adapted, insulated = (alone[name][1]["gradient"] for name in ("adamw", "adapted", "insulated"))
    assert any("magnitude" in weight for weight in adapted) and plain.keys() != adapted.keys()
    assert plain.keys() == insulated.keys()
    changed = {weight for weight, gradient in plain.items() if not torch.equal(gradient, insulated[weight])}
    assert any(".understanding." in weight for weight in changed)


@pytest.mark.parametrize("name", ["ddp", "fsdp", "fsdp asynchronous", "fsdp adapted"])
def test_the_policy_beside_the_state_is_whole(together: Path, name: str) -> None:
    """Whatever wrote it: every weight, none sharded, and the averaged ones."""
    checkpoint = find_checkpoint(together / name)
    policy = Policy.from_pretrained(checkpoint / "pretrained_model")
    own = merged(found(together, name)["average"], ADAPTED)
    assert_bitwise_equal(policy.model.state_dict(), own)
    raw = merged(found(together, name)["weights"], ADAPTED)
    assert not torch.equal(own["action.out_proj.weight"], raw["action.out_proj.weight"]), "averaging is on"
    shards = len(list((checkpoint / "training_state").glob("*.safetensors")))
    assert shards == 2


@pytest.mark.parametrize(("name", "size"), [("two copies of two shards", 4), ("compiled shards", 2)])
def test_hybrid_and_compiled_ranks_equal_one(
    alone: dict[str, tuple[Path, Found]], tmp_path: Path, name: str, size: int
) -> None:
    folder, expected = alone["adamw"]
    got = found(launched(folder, tmp_path, [name], size), name)
    for weight, gradient in expected["gradient"].items():
        assert (got["gradient"][weight] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, weight
    for mine, theirs in zip(got["log"], expected["log"], strict=True):
        assert told(mine) == pytest.approx(told(theirs), rel=LOSSES["adamw"], abs=1e-6)

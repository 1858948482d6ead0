"""Estimated memory against what real steps took, within 15 %."""

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import REPOSITORY
from tests.model.tiny import tiny_config
from tests.train.memory import SHARED, batches_of, most_allocated, most_in_use, steps, train_of
from tests.train.mid_size import mid_config

from vla_mot.errors import ConfigError
from vla_mot.model.config import ModelConfig
from vla_mot.train.config import ExpertsConfig, ExpertTraining, ParallelConfig, TrainConfig
from vla_mot.train.estimate import Memory, estimate
from vla_mot.train.planned import planned_model

FROZEN = ExpertTraining(frozen=True)
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "muon, averaged": {"optimizer": "muon", "ema_decay": 0.9},
    "recomputed": {"parallel": ParallelConfig(recompute="full")},
    "in passes": {"parallel": ParallelConfig(micro_batch=2)},
    "bf16": {"parallel": ParallelConfig(precision="bf16")},
    "bf16, products kept": {"parallel": ParallelConfig(precision="bf16", recompute="selective")},
    "bf16, recomputed, in passes": {
        "parallel": ParallelConfig(precision="bf16", recompute="full", micro_batch=4),
        "ema_decay": 0.9,
    },
    "insulated": {"insulate": True},
    "action expert alone": {
        "experts": ExpertsConfig(vision=FROZEN, understanding=FROZEN, generation=FROZEN),
        "ema_decay": 0.9,
    },
}


def estimated(
    config: ModelConfig, train: TrainConfig, ranks: int = 1, latents: torch.dtype | None = None
) -> Memory:
    return estimate(planned_model(config, train), train, batches_of(train, ranks), latents)


def close(measured: float) -> Any:
    return pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_what_is_measured(case: str, tmp_path: Path) -> None:
    train = train_of(**CASES[case])
    measured, stays = most_allocated(lambda: steps(mid_config(), train), tmp_path / "trace.json")
    memory = estimated(mid_config(), train)
    assert {name: getattr(memory, name) for name in stays} == stays
    assert memory.peak == close(measured)


@pytest.mark.parametrize("batch_size", [1, 16])
def test_the_estimate_is_what_is_measured_on_tiny(batch_size: int, tmp_path: Path) -> None:
    train = train_of(batch_size=batch_size)
    measured, _ = most_allocated(lambda: steps(tiny_config(), train), tmp_path / "trace.json")
    assert estimated(tiny_config(), train).peak == close(measured)


def test_other_families_and_cached_latents_are_estimated_alike(tmp_path: Path) -> None:
    config, train, latents = mid_config("internvl3"), train_of(), torch.float16
    measured, _ = most_allocated(lambda: steps(config, train, latents), tmp_path / "trace.json")
    assert estimated(config, train, latents=latents).peak == close(measured)


def test_the_measure_sees_what_is_allocated(tmp_path: Path) -> None:
    def twice() -> None:
        for _ in range(2):
            torch.empty(3_000_000, dtype=torch.uint8)

    assert most_allocated(twice, tmp_path / "trace.json")[0] == 3_000_000


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library is no glibc since 2.33"
)
def test_the_count_of_the_c_library_sees_what_another_thread_frees() -> None:
    def twice() -> None:
        for _ in range(2):
            handed = [torch.empty(30_000_000, dtype=torch.uint8)]
            thread = threading.Thread(target=handed.clear)
            thread.start()
            thread.join()

    assert most_in_use(twice)[0] == pytest.approx(30_000_000, rel=0.01)


def test_what_is_planned_for_cuda_is_recomputed_there_as_well() -> None:
    """Without a GPU: products in bfloat16 halve what is kept, recomputing leaves a fraction of it."""
    kept = {
        (precision, recompute): estimated(
            mid_config(),
            train_of(device="cuda", parallel=ParallelConfig(precision=precision, recompute=recompute)),
        ).activations
        for precision in ("fp32", "bf16")
        for recompute in ("none", "selective", "full")
    }
    for precision in ("fp32", "bf16"):
        assert kept[precision, "full"] < kept[precision, "selective"] < kept[precision, "none"]
    assert kept["bf16", "none"] < 0.8 * kept["fp32", "none"]


def test_ranks_that_do_not_divide_into_copies_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"4 ranks do not divide .*shard_ranks=3"):
        estimated(tiny_config(), train_of(parallel=ParallelConfig("fsdp", shard_ranks=3)), ranks=4)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library is no glibc since 2.33"
)
def test_the_estimate_is_what_one_of_two_ranks_measures(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.train.memory", str(tmp_path / "found.json")]
    ranks = [
        subprocess.Popen(
            command, cwd=REPOSITORY, env=os.environ | told | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(2)
    ]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    found = json.loads((tmp_path / "found.json").read_text())
    peaks = {}
    for name, (measured, stays) in found.items():
        memory = estimated(mid_config(), train_of(**SHARED[name]), ranks=2)
        del stays["gradients"]  # after the last pass; a rank holds more of them before
        assert {key: getattr(memory, key) for key in stays} == stays, name
        peaks[name] = memory.peak / measured
    assert peaks == dict.fromkeys(peaks, close(1.0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize("case", ["plain", "bf16", "bf16, products kept", "bf16, recomputed, in passes"])
def test_the_estimate_is_what_a_gpu_measures(case: str) -> None:
    train = train_of(batch_size=64, device="cuda", **CASES[case])
    steps(mid_config(), train)  # cuBLAS takes its workspace for good
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    steps(mid_config(), train)
    measured = torch.cuda.max_memory_allocated() - before
    assert estimated(mid_config(), train).peak == close(measured)

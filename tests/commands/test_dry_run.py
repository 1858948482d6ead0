"""`dry_run=true` says what a run would be: without data, without its ranks and devices, and leaving nothing behind."""

import re
from pathlib import Path

import pytest

from tests.composed import composed
from vla_mot.commands.dry_run import show
from vla_mot.errors import ConfigError

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def said(capsys, command: str, *words: str, ranks: int) -> str:
    show(composed(command, *words), ranks)
    return capsys.readouterr().out


def rows(told: str) -> dict[str, float]:
    """The table of memory, in bytes."""
    found = re.findall(r"^│ (\w+)\s*│\s*([\d.]+) (\wi?B|B) │", told, flags=re.MULTILINE)
    return {name: float(size) * UNITS[unit] for name, size, unit in found}


def test_a_cluster_is_planned_on_a_machine_without_any_of_it(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    parallel = ("precision=bf16", "strategy=fsdp", "micro_batch=4")
    words = [
        "experiment=pretrain_a1_3b",
        "train.device=cuda",
        *(f"train.parallel.{word}" for word in parallel),
    ]
    told = said(capsys, "pretrain", *words, ranks=64)
    assert "512 samples per step = 64 ranks × 4 samples × 2 passes" in told
    assert "201,216 per step: understanding 125,952, generation 49,152, state 512, action 25,600;" in told
    assert re.search(r"│ all\s*│\s*3,024,288,688 │", told)
    memory = rows(told)
    whole, tokenizer = 4 * 3_222_760_160, 4 * 76_789_472
    assert memory["parameters"] == pytest.approx((whole - tokenizer) / 64 + tokenizer, rel=0.01)
    assert memory["optimizer"] == pytest.approx(8 * 3_024_288_688 / 64, rel=0.01)
    assert memory["peak"] > memory["activations"] > 2**30
    assert not list(tmp_path.iterdir())


def test_a_small_run_is_planned(capsys) -> None:
    words = ("experiment=conveyor", "train.parallel.accumulate=4")
    told = said(capsys, "posttrain", *words, ranks=2)
    assert "32 samples per step = 2 ranks × 4 samples × 4 passes" in told
    assert re.search(r"action [\d,]+ in 4 draws", told)
    assert re.search(r"peak .* cpu, fp32; micro batch 4; muon; ddp", told)
    assert rows(told)["average"] > 0
    assert "average" not in rows(said(capsys, "posttrain", *words, "train.ema_decay=0", ranks=2))


@pytest.mark.parametrize(
    ("ranks", "words", "wanted"),
    [
        (3, (), r"32 does not divide among 3 ranks"),
        (
            2,
            ("train.parallel.micro_batch=4", "train.parallel.accumulate=2"),
            r"differs from the experiment's: .* = 16 .* is 32\. .*accumulate=4; .*train.batch_size=16",
        ),
        (0, (), r"ranks must be at least 1, got 0"),
        (4, ("train.parallel.strategy=fsdp", "train.parallel.shard_ranks=3"), r"shard_ranks=3"),
        (1, ("backbone.hidden_size=0",), r"backbone\.hidden_size"),
    ],
)
def test_what_the_run_would_refuse_is_refused(ranks: int, words: tuple[str, ...], wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        show(composed("posttrain", "experiment=conveyor", *words), ranks)


def test_shards_divide_what_stays(capsys) -> None:
    words = ("experiment=conveyor", "train.parallel.strategy=fsdp")
    one, four, pairs = (
        rows(said(capsys, "posttrain", *words, *more, ranks=ranks))
        for ranks, more in ((1, ()), (4, ()), (4, ("train.parallel.shard_ranks=2",)))
    )
    assert "gathered" not in one and four["gathered"] > 0
    for name in ("parameters", "optimizer", "average"):
        assert four[name] == pytest.approx(one[name] / 4, rel=0.15)
        assert pairs[name] == pytest.approx(one[name] / 2, rel=0.15)


def test_the_command_opens_and_leaves_nothing(vla_mot, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = vla_mot("pretrain", "experiment=pretrain_tiny", "dry_run=true", "ranks=2", "output=run")
    assert said.code == 0, said.err
    assert "32 samples per step = 2 ranks × 16 samples × 1 pass" in said.out
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_continued_is_not_planned(vla_mot, tmp_path: Path) -> None:
    said = vla_mot("posttrain", "dry_run=true", f"resume={tmp_path}")
    assert said.code == 2
    assert "plans a run that begins: leave resume out" in said.err

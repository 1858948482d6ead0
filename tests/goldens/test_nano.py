"""A checkpoint that this library once wrote is still read, and still answers as it did (`tools/refresh_nano.py`)."""

from pathlib import Path

import torch

from vla_mot.hub.checkpoint import open_checkpoint
from vla_mot.hub.tensors import Weights
from vla_mot.infer.golden import replay_golden
from vla_mot.infer.policy import Policy
from vla_mot.infer.verify import verify

NANO = Path(__file__).with_name("nano")


def test_it_verifies():
    checks = list(verify(open_checkpoint(NANO)))
    assert [(check.name, check.passed) for check in checks] == [
        ("files", True),
        ("weights", True),
        ("statistics of conveyor/delta", True),
        ("golden answer", True),
    ]


def test_it_answers_as_it_did():
    """Reached on the CPUs seen so far: 5e-7."""
    policy = Policy.from_pretrained(NANO)
    (found,) = replay_golden(policy, Weights.open(NANO / "golden.safetensors").read())
    assert max(found.actions, found.foresight) < 2e-5


def test_the_answer_depends_on_everything_that_was_given():
    """A replay that ignored part of its recording would find nothing."""
    policy, recorded = Policy.from_pretrained(NANO), Weights.open(NANO / "golden.safetensors").read()
    name = "conveyor/delta"
    for part in ("images", "state", "instruction", "noise"):
        changed = dict(recorded)
        changed[f"{name}:{part}"] = torch.flip(recorded[f"{name}:{part}"], dims=(0,))
        (found,) = replay_golden(policy, changed)
        assert found.actions > 1e-3, part

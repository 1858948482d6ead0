"""Weights go straight to the GPU, in the dtype that was asked for, and the golden answer is the same there."""

from pathlib import Path

import pytest
import torch

from vla_mot.hub.checkpoint import open_checkpoint
from vla_mot.infer.policy import Policy
from vla_mot.infer.verify import verify

NANO = Path(__file__).parents[1] / "goldens" / "nano"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_weights_are_made_on_the_device(dtype):
    policy = Policy.from_pretrained(NANO, device="cuda", dtype=dtype)
    assert {tensor.device.type for tensor in policy.model.state_dict().values()} == {"cuda"}
    assert {buffer.device.type for buffer in policy.model.buffers()} == {"cuda"}
    assert policy.model.action.out_proj.weight.dtype == (dtype or torch.float32)


def test_the_golden_answer_is_the_same_there():
    assert [check.passed for check in verify(open_checkpoint(NANO), device="cuda")] == [True] * 4

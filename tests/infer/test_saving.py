"""What `save_pretrained` writes opens again as it was, whatever dtype it was opened in and wherever it is written."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.infer.tiny_policy import frames, states, tiny_policy
from vla_mot.errors import ConfigError
from vla_mot.hub.checkpoint import open_checkpoint
from vla_mot.infer.policy import Policy
from vla_mot.infer.verify import verify


def chunk(policy: Policy) -> torch.Tensor:
    pairs = {key: torch.stack((image,) * 2, dim=1) for key, image in frames(2).items()}
    return policy.predict(pairs, states(2), ["red", "blue"], policy.noise([3, 4], 0)).actions


@pytest.fixture
def saved(policy, tmp_path) -> Path:
    policy.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_policy_opened_in_another_dtype_is_saved_in_it(saved, tmp_path, dtype):
    policy = Policy.from_pretrained(saved, dtype=dtype)
    policy.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors")["action.out_proj.weight"].dtype == dtype
    assert torch.equal(chunk(Policy.from_pretrained(tmp_path / "again")), chunk(policy))
    assert all(check.passed for check in verify(open_checkpoint(tmp_path / "again")))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64])
def test_weights_are_opened_in_no_other_dtype(saved, dtype):
    with pytest.raises(ConfigError, match=f"float32 or torch.bfloat16, got {dtype}"):
        Policy.from_pretrained(saved, dtype=dtype)


def test_a_model_that_was_cast_by_hand_is_not_saved_as_something_else(tmp_path):
    """What could not be opened again is not written."""
    policy = tiny_policy()
    policy.model.cast(torch.bfloat16)
    with pytest.raises(ConfigError, match=r"its weights are float32, but .* is torch.bfloat16, not torch.fl"):
        policy.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("mode", ["Delta", "absolute", ""])
def test_an_unknown_action_mode_is_refused(saved, mode):
    with pytest.raises(ConfigError, match=rf"unknown action mode '{mode}'\..* Known: abs, delta\."):
        Policy.from_pretrained(saved, action_mode=mode)

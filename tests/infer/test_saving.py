"""What `save_pretrained` writes opens again as it was, whatever dtype it was opened in and wherever it is written."""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.infer.tiny_policy import frames, states, tiny_policy
from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.hub import native
from vla_mot.hub.checkpoint import open_checkpoint
from vla_mot.hub.files import write_json
from vla_mot.hub.manifest import compare, write_manifest
from vla_mot.hub.native import save_policy
from vla_mot.hub.remote import OWN_FILES, missing_files
from vla_mot.hub.tensors import Weights, write_weights
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


# ---- over an older checkpoint -----------------------------------------------------------------------------------


def shifted(policy: Policy) -> Policy:
    with torch.no_grad():
        policy.model.action.out_proj.bias += 1
    return policy


def in_shards(policy: Policy, folder: Path) -> None:
    policy.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    write_weights(folder, policy.model.state_dict(), max_shard_bytes=20_000)
    write_manifest(folder)


def test_a_new_policy_takes_the_place_of_an_older_one_in_shards(tmp_path):
    in_shards(tiny_policy(), tmp_path / "policy")
    assert len(list((tmp_path / "policy").glob("model-*-of-*"))) > 1
    changed = shifted(tiny_policy())
    changed.save_pretrained(tmp_path / "policy")
    changed.save_pretrained(tmp_path / "fresh")
    assert contents(tmp_path / "policy") == contents(tmp_path / "fresh")


def test_shards_take_the_place_of_a_single_file(tmp_path, monkeypatch):
    tiny_policy().save_pretrained(tmp_path / "policy")
    changed = shifted(tiny_policy())
    monkeypatch.setattr(native, "write_weights", partial(write_weights, max_shard_bytes=20_000))
    changed.save_pretrained(tmp_path / "policy")
    assert torch.equal(chunk(Policy.from_pretrained(tmp_path / "policy")), chunk(changed))
    assert all(check.passed for check in verify(open_checkpoint(tmp_path / "policy")))


def test_nothing_of_an_older_checkpoint_is_adopted_and_nothing_else_is_touched(tmp_path):
    folder, policy = tmp_path / "policy", tiny_policy()
    save_policy(folder, policy.spec, policy.model.state_dict(), training={"stage": "old"})
    for name in ("released_config.json", "released_stats.json", "README.md", "notes.txt"):
        (folder / name).write_text("{}")
    policy.save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} >= {"README.md", "notes.txt"}
    assert not any(
        (folder / name).exists() for name in ("training.json", "released_config.json", "released_stats.json")
    )
    assert Policy.from_pretrained(folder).spec.released is None
    assert next(verify(open_checkpoint(folder))).passed


def test_what_the_hub_does_not_bring_is_not_in_the_manifest(saved, tmp_path):
    """A repository's licence and films are nobody's business: whoever fetches the policy gets neither."""
    for name in ("LICENSE", "media/demo.mp4", "media/films.json"):
        (saved / name).parent.mkdir(exist_ok=True)
        (saved / name).write_text("{}")
    shifted(Policy.from_pretrained(saved)).save_pretrained(saved)
    assert compare(saved) == []
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    for file in (file for pattern in OWN_FILES for file in saved.glob(pattern)):
        shutil.copy(file, fetched)
    assert compare(fetched) == []
    (fetched / "more.json").write_text("{}")
    (fetched / "stats.json").unlink()
    assert compare(fetched) == ["stats.json is missing", "more.json is not in the manifest"]


def test_a_policy_may_be_saved_where_it_was_opened(saved):
    policy = shifted(Policy.from_pretrained(saved))
    policy.save_pretrained(saved)
    assert torch.equal(chunk(Policy.from_pretrained(saved)), chunk(policy))


@pytest.mark.parametrize("older", [True, False])
def test_a_save_that_fails_leaves_what_was_there(saved, tmp_path, monkeypatch, older):
    """A disk that is full when the weights are to be written."""
    folder = saved if older else tmp_path / "new"
    before = contents(folder) if older else None

    def full(*_args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(native, "write_weights", full)
    with pytest.raises(OSError, match="no space left"):
        shifted(Policy.from_pretrained(saved)).save_pretrained(folder)
    assert (contents(folder) == before) if older else not folder.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_weights_in_two_ways_are_an_error(saved):
    write_json(saved / "model.safetensors.index.json", {"weight_map": {"a": "b.safetensors"}})
    for read in (Weights.open, missing_files, Policy.from_pretrained):
        with pytest.raises(
            CheckpointError, match=r"both model.safetensors and model.safetensors.index.json: which"
        ):
            read(saved)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}

"""A checkpoint whose tokenizer came from a folder opens on another machine, where that folder is not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.backbones.words import WORDS, word_tokenizer
from tests.hub.loopback_hub import OWNER, LoopbackHub
from tests.infer.tiny_policy import HEAD, frames, states, tiny_policy
from tests.model.tiny import backbone_options

from vla_mot.errors import ConfigError
from vla_mot.hub.files import read_json
from vla_mot.hub.manifest import compare
from vla_mot.infer.policy import Policy


@pytest.fixture
def words(tmp_path) -> Path:
    """A folder as a whole stock checkpoint would be: more than the tokenizer is in it."""
    folder = word_tokenizer(tmp_path / "words")
    (folder / "model.safetensors").write_bytes(b"gigabytes")
    (folder / "modeling.py").write_text("code")
    return folder


def policy_with(tokenizer: str) -> Policy:
    return tiny_policy(backbone=backbone_options("qwen3_vl", tokenizer=tokenizer))


def answered(policy: Policy) -> torch.Tensor:
    now = {key: torch.stack((image, image), 1) for key, image in frames(1).items()}
    return policy.predict(now, states(1), ["pick the block"], policy.noise([0], 0)).actions


def test_the_files_travel_with_the_policy(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    policy = policy_with("words")  # a folder of the working folder
    expected = answered(policy)
    policy.save_pretrained(tmp_path / "saved")
    held = {path.name for path in (tmp_path / "saved" / "tokenizer").iterdir()}
    assert held == {"tokenizer.json", "tokenizer_config.json"}
    assert read_json(tmp_path / "saved" / "config.json")["model"]["backbone"]["tokenizer"] == "./tokenizer"
    elsewhere = shutil.move(tmp_path / "saved", tmp_path / "another machine")
    shutil.rmtree(words)
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")
    again = Policy.from_pretrained(elsewhere)
    assert compare(Path(elsewhere)) == []
    assert torch.equal(answered(again), expected)
    again.save_pretrained(tmp_path / "third")
    shutil.rmtree(elsewhere)
    assert torch.equal(answered(Policy.from_pretrained(tmp_path / "third")), expected)
    text = "".join(path.read_text() for path in (tmp_path / "third").rglob("*.json"))
    assert str(tmp_path) not in text, "no place of this machine is published"


def test_the_files_are_part_of_what_is_verified(words, tmp_path):
    policy_with(str(words)).save_pretrained(tmp_path / "saved")
    shutil.rmtree(tmp_path / "saved" / "tokenizer")
    word_tokenizer(tmp_path / "saved" / "tokenizer", (*WORDS[:3], "the", "pick", "block"))
    assert compare(tmp_path / "saved") == ["tokenizer/tokenizer.json was changed: its SHA-256 is another one"]


def test_a_policy_may_be_saved_where_it_was_opened(words, tmp_path):
    policy_with(str(words)).save_pretrained(tmp_path / "saved")
    Policy.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "saved")
    assert compare(tmp_path / "saved") == []
    answered(Policy.from_pretrained(tmp_path / "saved"))


def test_a_tokenizer_that_is_gone_is_named(words, tmp_path):
    policy = policy_with(str(words))
    (words / "tokenizer.json").unlink()
    (words / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigError, match=r"words holds no tokenizer \(tokenizer.json, …\) any more"):
        policy.save_pretrained(tmp_path / "saved")


def test_a_named_tokenizer_stays_a_name(tmp_path):
    policy_with("byte").save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "tokenizer").exists()
    assert read_json(tmp_path / "saved" / "config.json")["model"]["backbone"]["tokenizer"] == "byte"


def test_lerobot_saves_and_opens_it_too(words, tmp_path):
    from vla_mot.policy import VlaMotPolicy

    policy_with(str(words)).save_pretrained(tmp_path / "saved")
    opened = VlaMotPolicy.from_pretrained(tmp_path / "saved")
    opened.save_pretrained(tmp_path / "again")
    shutil.rmtree(tmp_path / "saved")
    shutil.rmtree(words)
    seen = {key: image.float() / 255 for key, image in frames(1).items()}
    seen |= {"observation.state": states(1), "task": ["pick the block"]}
    again = VlaMotPolicy.from_pretrained(tmp_path / "again")
    assert HEAD in seen and torch.equal(again.select_action(seen), opened.select_action(seen))
    assert str(tmp_path) not in json.dumps(read_json(tmp_path / "again" / "config.json"))


def test_lerobot_pushes_every_file(words, tmp_path, monkeypatch, caplog):
    """Its own upload takes four endings of names, and merges.txt has none of them."""
    from lerobot.configs.default import DatasetConfig
    from lerobot.configs.train import TrainPipelineConfig

    from vla_mot.policy import VlaMotPolicy

    (words / "merges.txt").write_text("#version: 0.2\n")
    policy_with(str(words)).save_pretrained(tmp_path / "saved")
    opened = VlaMotPolicy.from_pretrained(tmp_path / "saved")
    opened.config.repo_id, opened.config.private, opened.config.license = "org/policy", True, "MIT"
    training = TrainPipelineConfig(DatasetConfig("blocks"), policy=opened.config)
    constants = "huggingface_hub.constants"
    with LoopbackHub() as hub, caplog.at_level("INFO"):
        monkeypatch.setenv("HF_TOKEN", OWNER)
        for name, value in {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "ENDPOINT": hub.url}.items():
            monkeypatch.setattr(f"{constants}.{name}", value)
        opened.push_model_to_hub(training)
        repository = hub.repository("org/policy")
        assert f"Model pushed to {hub.url}/org/policy" in caplog.messages, (
            "the words that lerobot.jobs.hf awaits"
        )
    assert repository.private and len(repository.messages) == 2, "the first commit is the Hub's own"
    for name, content in repository.commits[repository.branches["main"]].items():
        (tmp_path / "fetched" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fetched" / name).write_bytes(content)
    assert (tmp_path / "fetched" / "tokenizer" / "merges.txt").is_file()
    assert compare(tmp_path / "fetched") == []
    assert read_json(tmp_path / "fetched" / "train_config.json")["dataset"]["repo_id"] == "blocks"
    card = (tmp_path / "fetched" / "README.md").read_text()
    assert "license: mit" in card and "- dataset: blocks" in card
    assert "datasets:" not in card, "a name of that form is no repository"
    shutil.rmtree(words)
    assert torch.equal(answered(Policy.from_pretrained(tmp_path / "fetched")), answered(opened._policy))

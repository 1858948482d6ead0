"""`vla-mot push`, and what other commands and processes make of what was pushed. The Hub is one on this machine."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.composed import composed
from tests.evaluate.found import evaluation
from tests.hub.loopback_hub import OWNER, LoopbackHub, client_environment
from tests.infer.tiny_policy import frames, states, tiny_policy
from vla_mot.commands.manual import COMMANDS
from vla_mot.commands.push import PushConfig, facts
from vla_mot.commands.repositories import named
from vla_mot.evaluate.results import POLICY_HASH, Evaluation
from vla_mot.hub.checkpoint import open_checkpoint
from vla_mot.hub.manifest import identity
from vla_mot.hub.native import save_policy
from vla_mot.infer.golden import record_golden
from vla_mot.infer.policy import Policy

NAME = "org/policy"
ACT = """
import sys, torch
from safetensors.torch import load_file, save_file
from vla_mot import Policy
assert "torchvision" not in sys.modules, "it takes seconds, and only some checkpoints need it"
name, commit, place = sys.argv[1:]
policy = Policy.from_pretrained(name, revision=commit)
given = load_file(f"{place}/given.safetensors")
images = {key: value for key, value in given.items() if key.startswith("observation.images")}
chunk = policy.predict(images, given["state"], ["pick the red block"], given["noise"])
save_file({"actions": chunk.actions, "foresight": chunk.foresight.contiguous()}, f"{place}/answer.safetensors")
from vla_mot.commands.main import main
sys.exit(main(["info", f"checkpoint={name}", f"revision={commit}"]) or main(["verify", f"checkpoint={name}"]))
"""


@pytest.fixture
def run(tmp_path) -> Path:
    """What a run of four steps leaves, and three evaluations: twice of its policy, and of another one."""
    checkpoint = tmp_path / "run" / "checkpoints" / "000004"
    policy = tiny_policy()
    training = {"train": {"steps": 6, "batch_size": 4}, "data": {"root": str(tmp_path / "five episodes")}}
    save_policy(
        checkpoint / "pretrained_model",
        policy.spec,
        policy.model.state_dict(),
        golden=record_golden(policy),
        training=training,
    )
    (checkpoint / "training_state").mkdir()
    (checkpoint / "training_state" / "progress.json").write_text('{"step": 4}')
    (checkpoint.parent / "last").symlink_to(checkpoint.name)
    records = [
        {"step": 2, "kind": "validation", "action_loss": 0.5, "foresight_loss": 0.4, "seconds": 1.0},
        {"step": 4, "kind": "train", "action_loss": 9.0},
        {"step": 4, "kind": "validation", "action_loss": 0.25, "foresight_loss": "nan", "seconds": 2.0},
        {"step": 6, "kind": "validation", "action_loss": 0.125, "foresight_loss": 0.1, "seconds": 3.0},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "run" / "log.jsonl").write_text(lines)
    told = {POLICY_HASH: str(identity(checkpoint / "pretrained_model")), "environment": "conveyor"}
    for name, more in (("evaluation", {}), ("quick", {"sampler": "1 step"}), ("earlier", {POLICY_HASH: "x"})):
        replace(evaluation(), provenance=told | more).save(tmp_path / "run" / name)
    return tmp_path / "run"


def policy_of(run: Path) -> Path:
    return run / "checkpoints" / "000004" / "pretrained_model"


# ---- the card ---------------------------------------------------------------------------------------------------


def test_the_card_is_filled_from_the_run_as_it_was_at_that_step(run):
    found = facts(open_checkpoint(policy_of(run)), PushConfig(run, NAME, "mit", datasets=("org/episodes",)))
    assert found.validation == {"action (step 4)": 0.25}
    assert found.training == {"steps": "4 of 6", "batch size": 4}
    assert (found.dataset, found.datasets) == ("five episodes, 100 training frames", ("org/episodes",))
    # The policy's own arm, of this checkpoint alone; another sampler than its own is said.
    assert [success.task for success in found.success] == ["conveyor", "conveyor, 1 step"]
    success = found.success[0]
    assert (success.rate, success.episodes) == (0.7, 10)
    assert 0.39 < success.low < 0.4 and 0.89 < success.high < 0.9


def test_a_policy_outside_a_run_says_what_it_knows_itself(run, tmp_path):
    policy_of(run).rename(tmp_path / "alone")
    found = facts(open_checkpoint(tmp_path / "alone"), PushConfig(run, NAME, "mit"))
    assert found.validation == {} and found.success == () and "steps" not in found.training


# ---- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"license": None}, "license must be given"),
        ({"repo": None}, "repo must be given"),
        ({"checkpoint": "nowhere"}, "checkpoint nowhere does not exist"),
        ({"repo": "policy"}, "'policy' is neither an existing folder nor a Hub repository id"),
        ({"license": "Apache-2.0"}, "Did you mean 'apache-2.0'?"),
        ({"license": "other"}, "license_name goes with license=other"),
        ({"private": "perhaps"}, "private: expected true or false, got 'perhaps'"),
        ({"revision": "a..b"}, "revision 'a..b' is no branch to upload to"),
        ({"message": "''"}, "message: expected the commit's first line"),
        ({"datasets": "[/disk/data]"}, "datasets: expected ids of Hub repositories"),
        ({"licence": "mit"}, "unknown key 'licence'. Did you mean 'license'?"),
    ],
)
def test_a_value_that_does_not_fit(vla_mot, run, monkeypatch, change, said):
    monkeypatch.setenv("HF_TOKEN", OWNER)
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_OFFLINE", False
    )  # what is refused is not the network
    given = {"checkpoint": run, "repo": NAME, "license": "mit"} | change
    answer = vla_mot("push", *(f"{key}={value}" for key, value in given.items() if value is not None))
    assert answer.code == 2 and said in answer.err
    assert "Traceback" not in answer.err


def test_a_checkpoint_that_was_touched_is_not_uploaded(vla_mot, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", OWNER)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    (policy_of(run) / "stats.json").write_text((policy_of(run) / "stats.json").read_text() + "\n")
    answer = vla_mot("push", f"checkpoint={run}", f"repo={NAME}", "license=mit")
    assert answer.code == 2 and "stats.json has" in answer.err and "nothing was uploaded" in answer.err


# ---- the network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "config", "overrides", "repositories"),
    [
        (("checkpoint",), {"checkpoint": NAME}, [], [NAME]),
        (("checkpoint",), {"checkpoint": "here/policy"}, [], []),
        (("checkpoint",), {"checkpoint": "a/longer/path"}, [], []),
        (("checkpoint",), {"checkpoint": None}, [], []),
        (("init_from", "backbone.weights"), {"init_from": None, "backbone": {"weights": NAME}}, [], [NAME]),
        (("init_from", "backbone.weights"), {"backbone": None}, [], []),
        (("checkpoint",), {"checkpoint": "here/policy"}, [f"checkpoint=here/policy,{NAME}"], [NAME]),
        ((), {"checkpoint": NAME}, [], []),
    ],
)
def test_the_network_is_needed_where_a_value_names_a_repository(
    tmp_path, monkeypatch, keys, config, overrides, repositories
):
    (tmp_path / "here" / "policy").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert named(keys, config, overrides) == repositories


def test_every_key_that_may_name_a_repository_exists():
    asked = [command for command in COMMANDS if command.hub]
    assert len(asked) > 4
    for command in asked:
        config = composed(command.config)
        for key in command.hub:
            group, _, name = key.rpartition(".")
            assert name in (config[group] if group else config)


def vla_mot_at(hub: LoopbackHub, home: Path, *arguments: object, **environment: str) -> str:
    """What a `vla-mot` of its own says, whose Hub is this one."""
    done = subprocess.run(
        [sys.executable, "-m", "vla_mot.commands.main", *map(str, arguments)],
        env=client_environment(hub.url, home, **environment),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_what_is_pushed_acts_and_is_verified_elsewhere(run, tmp_path):
    with LoopbackHub() as hub:
        home = tmp_path / "home"
        told = ("license=apache-2.0", "private=true", "notes=Two colours only.")
        said = vla_mot_at(hub, home, "push", f"checkpoint={run}", f"repo={NAME}", *told, HF_TOKEN=OWNER)
        commit = hub.repository(NAME).branches["main"]
        assert f"uploaded: {hub.url}/{NAME}/commit/{commit}" in said and f"revision={commit}" in said
        assert "earlier is left out of the model card" in said
        assert hub.repository(NAME).private and not (policy_of(run) / "README.md").exists()
        pushed = hub.repository(NAME).commits[commit]
        assert pushed.keys() - {"README.md", ".gitattributes"} == {p.name for p in policy_of(run).iterdir()}
        card = pushed["README.md"].decode()
        for line in ("license: apache-2.0", "| conveyor | 70 % | 40 … 89 % | 10 |", "Two colours only."):
            assert line in card.splitlines()
        assert str(tmp_path) not in card

        given = frames(1)
        images = {key: torch.stack([value, value], dim=1) for key, value in given.items()}
        policy = Policy.from_pretrained(policy_of(run))
        state, noise = states(1), policy.noise([0], 0)
        chunk = policy.predict(images, state, ["pick the red block"], noise)
        save_file(images | {"state": state, "noise": noise}, tmp_path / "given.safetensors")
        done = subprocess.run(
            [sys.executable, "-c", ACT, NAME, commit, str(tmp_path)],
            env=client_environment(hub.url, home, HF_TOKEN=OWNER),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("ok ") == 4 and "every file has the SHA-256 that was recorded" in done.stdout
        assert f"{NAME} at {commit}" in done.stdout
        answer = load_file(tmp_path / "answer.safetensors")
        assert torch.equal(answer["actions"], chunk.actions)
        assert torch.equal(answer["foresight"], chunk.foresight)

        output = tmp_path / "evaluated"
        quick = ("episodes=1", "videos=0", "env.max_steps=2")
        vla_mot_at(hub, home, "evaluate", f"checkpoint={NAME}", f"output={output}", *quick, HF_TOKEN=OWNER)
        told = Evaluation.load(output).provenance
        assert (told["checkpoint"], told["commit"]) == (NAME, commit)
        assert told[POLICY_HASH] == identity(policy_of(run))

"""`vla-mot export`: what it writes and says, and what it refuses before it opens anything."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.infer.tiny_policy import frames, known_robot, states, tiny_policy
from vla_mot.hub.files import sha256
from vla_mot.infer.export import ExportedPolicy
from vla_mot.infer.policy import Policy

NANO = Path(__file__).parents[1] / "goldens" / "nano"


def test_it_writes_programs_that_answer_like_the_policy(vla_mot, tmp_path):
    out = tmp_path / "programs"
    said = vla_mot("export", f"checkpoint={NANO}", f"output={out}", "num_steps=2", "solver=heun")
    assert said.code == 0, said.err
    assert sorted(path.name for path in out.iterdir()) == [
        "denoise.pt2", "golden.safetensors", "manifest.json", "prefill.pt2", "program.json",
    ]  # fmt: skip
    assert "policy.actions: differs by 0.0e+00" in said.out
    digest = sha256(out / "manifest.json")
    assert digest in said.out
    programs = ExportedPolicy.open(out, sha256=digest)
    policy = Policy.from_pretrained(NANO).with_sampler(num_steps=2, solver="heun")
    height, width = policy.spec.model.view_size
    seen = {
        key: torch.nn.functional.interpolate(x, (height, width))[:, None].expand(-1, 2, -1, -1, -1)
        for key, x in frames(1).items()
    }
    noise = policy.noise([5], 0)
    ours, theirs = (it.predict(seen, states(1), ["fetch it"], noise) for it in (policy, programs))
    assert torch.equal(ours.actions, theirs.actions)
    assert json.loads((out / "program.json").read_text())["sampler"]["solver"] == "heun"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["format=onx"], "Did you mean 'onnx'?"),
        (["stages=[prefill]"], "prefill and denoise only work together"),
        (["stages=[prefil,denoise]"], "'prefill'"),
        (["batch=0"], "batch must be at least 1"),
        (["format=onnx", "dtype=bfloat16"], "format=onnx is written in float32"),
        (["device=cuda:99"], "torch finds no such device"),
        (["external_data=true"], "for format=onnx alone"),
        (["robot=genie1"], "knows no robot with embodiment 'genie1'"),
        (["embodiment=genie1"], "knows no robot with embodiment 'genie1'"),
        (["checkpoint=nowhere"], "nowhere does not exist"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(vla_mot, tmp_path, words, said):
    out = tmp_path / "programs"
    done = vla_mot("export", f"checkpoint={NANO}", f"output={out}", *words)
    assert (done.code, said in done.err, out.exists()) == (2, True, False), done.err


def test_a_used_output_stays_as_it_is(vla_mot, tmp_path):
    (tmp_path / "mine").write_text("kept")
    done = vla_mot("export", f"checkpoint={NANO}", f"output={tmp_path}")
    assert (done.code, "already used (it holds mine)" in done.err) == (2, True)


def test_of_several_robots_one_must_be_chosen(vla_mot, tmp_path):
    policy = tiny_policy(max_state_dim=16, max_action_dim=16)
    robots = (*policy.spec.robots, known_robot("piper", policy.spec.model.chunk_size))
    Policy(policy.model, replace(policy.spec, robots=robots)).save_pretrained(tmp_path / "two")
    done = vla_mot("export", f"checkpoint={tmp_path / 'two'}", f"output={tmp_path / 'out'}")
    assert (done.code, "fits 2 robots" in done.err, "embodiment=…" in done.err) == (2, True, True), done.err

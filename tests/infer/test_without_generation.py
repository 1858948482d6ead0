"""A policy without generation expert acts, is saved, verified, run by an engine and exported like any other."""

import pytest
import torch

from tests.infer.test_engine import assert_same, observed, static
from tests.infer.tiny_policy import frames, states, tiny_policy
from tests.model.tiny import tiny_batch, tiny_model
from vla_mot.errors import ConfigError
from vla_mot.evaluate.foresight import mean_future_latents
from vla_mot.hub.checkpoint import open_checkpoint
from vla_mot.hub.describe import architecture, foresight
from vla_mot.infer.export import ExportedPolicy, ExportOptions, export_policy
from vla_mot.infer.export.stages import SEEN, Flow, Sample
from vla_mot.infer.policy import Policy
from vla_mot.infer.session import Session
from vla_mot.infer.verify import verify

WITHOUT = {"generation": None, "foresight": None}


@pytest.fixture
def policy() -> Policy:
    return tiny_policy(**WITHOUT)


def acted(policy: Policy, **options) -> torch.Tensor:
    """Seven actions of two robots that see something else at every step."""
    session = Session(policy, seeds=[0, 1], **options)
    return torch.stack(
        [session.act(frames(2, step), states(2, step), ["pick", "place"]) for step in range(7)]
    )


def test_a_session_acts_and_its_history_does_not_matter(policy):
    assert torch.equal(acted(policy), acted(policy, history="present"))
    whole = tiny_policy()
    assert not torch.equal(acted(whole), acted(whole, history="present"))


def test_a_policy_that_was_trained_without_history_acts_without():
    still = tiny_policy(history="present")
    assert torch.equal(acted(still), acted(tiny_policy(), history="present"))
    assert "history replaced by the present" in foresight(still.spec.model, 10.0)


def test_it_is_saved_opened_described_and_verified(policy, tmp_path):
    policy.save_pretrained(tmp_path / "policy")
    opened = Policy.from_pretrained(tmp_path / "policy")
    assert torch.equal(acted(opened), acted(policy))
    assert opened.spec.model.generation is None and opened.spec.model.foresight is None
    checks = list(verify(open_checkpoint(tmp_path / "policy")))
    assert [check.name for check in checks if check.passed is not True] == []
    assert "foresight" not in checks[-1].text
    assert architecture(policy.spec.model)["experts"] == "generation none, action 16"
    assert foresight(policy.spec.model, 10.0).startswith("none, and no history")


def test_an_engine_samples_the_same(policy):
    engine = static(tiny_model(**WITHOUT))
    assert_same(engine, observed())
    assert_same(engine, observed(slice(1, 2)), solver="heun")
    assert {plan.counts[1] for plan in engine._plans.values()} == {0}
    torch.testing.assert_close(acted(policy.compile("static")), acted(policy), rtol=0, atol=1e-5)


def test_it_is_exported(policy, tmp_path):
    export_policy(policy, tmp_path / "program", ExportOptions())
    exported = ExportedPolicy.open(tmp_path / "program")
    alone = {key: images.unsqueeze(1).expand(-1, 2, -1, -1, -1) for key, images in frames(1).items()}
    asked = (alone, states(1), ["pick the red block"], policy.noise([0], 0))
    theirs, ours = exported.predict(*asked), policy.predict(*asked)
    torch.testing.assert_close(theirs.actions, ours.actions, rtol=0, atol=1e-6)
    assert theirs.foresight is None and ours.foresight is None
    seen = policy.observe(*asked[:3])
    given = {name: getattr(seen, name) for name in SEEN} | {"noise": asked[3]}
    sampled = Sample(policy.model, Flow(3, "euler", 3)).named(given)
    assert sampled.keys() == {"actions"}
    assert torch.equal(policy.processor.physical(sampled["actions"], states(1)), ours.actions)


@pytest.mark.parametrize(
    "ask",
    [
        lambda policy, folder: Session(policy, [0], remember_latents=True),
        lambda policy, folder: policy.encode(frames(1)),
        lambda policy, folder: export_policy(policy, folder, ExportOptions(latents=True)),
        lambda policy, folder: mean_future_latents(policy.model, [tiny_batch()]),
    ],
    ids=["session", "encode", "export", "score"],
)
def test_what_only_a_generation_expert_reads_is_refused(policy, tmp_path, ask):
    with pytest.raises(ConfigError, match="no generation expert"):
        ask(policy, tmp_path)

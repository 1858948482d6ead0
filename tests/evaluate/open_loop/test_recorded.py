from dataclasses import replace

import pytest
import torch

from tests.evaluate.open_loop.moments import driving, recorded, two_units
from tests.infer.tiny_policy import HEAD, known_robot, tiny_policy
from vla_mot.evaluate.open_loop.recorded import hold_still, predict, silent_robot
from vla_mot.infer.policy import Policy
from vla_mot.robots.embodiment import Embodiment


def test_the_policy_is_asked_as_on_the_robot():
    policy, seen = tiny_policy(), recorded()
    found = predict(policy, seen, draw=3)
    noise = policy.noise([100, 101, 102, 103, 104], 3)
    expected = policy.predict(seen.images, seen.state, seen.tasks, noise)
    assert torch.equal(found.actions, expected.actions)
    assert torch.equal(found.foresight, expected.foresight)
    assert not torch.equal(found.actions, predict(policy, seen, draw=4).actions)


def test_a_chunk_does_not_depend_on_what_is_asked_beside_it():
    policy, seen = tiny_policy(), recorded()
    rows = torch.tensor([3, 1])
    parts = {name: getattr(seen, name)[rows] for name in ("state", "actions", "index")}
    some = replace(
        seen,
        **parts,
        images={key: value[rows] for key, value in seen.images.items()},
        tasks=tuple(seen.tasks[row] for row in rows.tolist()),
    )
    together, apart = predict(policy, seen).actions, predict(policy, some).actions
    assert torch.allclose(together[rows], apart, atol=1e-5)


def test_holding_still_is_the_state_or_the_mean_action():
    seen = recorded(state_dim=2)
    still = hold_still(two_units(), seen)
    assert still.shape == seen.actions.shape
    for step in range(still.shape[1]):
        assert torch.equal(still[:, step, :2], seen.state)
        assert still[:, step, 2].tolist() == pytest.approx([0.3] * 5)


@pytest.mark.parametrize(("mode", "mean"), [("abs", 0.1), ("delta", 0.1 + 0.1)])
def test_holding_still_where_actions_are_commands_is_the_mean_command(mode, mean):
    seen = recorded(state_dim=8, action_dim=7)
    still = hold_still(
        known_robot("panda", 4, mode), seen
    )  # learned, its mean is 0.1; so is that of its state
    assert torch.allclose(still, torch.full_like(seen.actions, mean))


def test_a_robot_without_actions_is_only_foreseen():
    policy = driving(two_units())
    eye = Embodiment("eye", 10.0, (), (), (HEAD, None, None))
    watching = Policy(policy.model, policy.spec, silent_robot(eye, policy.spec.model))
    seen = recorded(state_dim=0, action_dim=0)
    found = predict(watching, seen)
    assert found.actions.shape == (5, 4, 0)
    expected = policy.model.prefill(watching.observe(seen.images, seen.state, seen.tasks)).foresight
    assert torch.equal(found.foresight, expected)
    assert found.foresight.shape[1] == 1, "one camera"

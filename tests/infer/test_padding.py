"""Robots of any width and of one to four cameras in one model: what is padded never changes an output."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.infer.tiny_policy import SIZE, statistics
from tests.model.tiny import tiny_model
from vla_mot.batch import Batch, Observation
from vla_mot.hub.spec import PolicySpec, SamplerConfig
from vla_mot.infer.policy import Policy
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.normalization import Statistics
from vla_mot.robots.robot import Robot

VIEWS, STATE, ACTION, CHUNK = 4, 6, 7, 4
STATE_WIDTH, ACTION_WIDTH = 9, 10
SLOTS = [(0,), (0, 2), (1, 3), (0, 1, 3), (0, 1, 2, 3)]


def robot(slots: tuple[int, ...]) -> Robot:
    """Six state and seven action dimensions, five of them deltas; cameras in these of four slots."""
    names = {"state": [f"s{i}" for i in range(STATE)], "action": [f"a{i}" for i in range(ACTION)]}
    body = Embodiment.from_dict(
        {
            "name": f"cameras_{'_'.join(map(str, slots))}",
            "fps": 10,
            "state": [{"key": "observation.state", "names": names["state"], "units": ["rad"] * STATE}],
            "action": [
                {
                    "key": "action",
                    "names": names["action"],
                    "units": ["rad"] * ACTION,
                    "delta": [True] * 5 + [False] * 2,
                }
            ],
            "cameras": [f"camera{slot}" if slot in slots else None for slot in range(VIEWS)],
        }
    )
    state, action = statistics([0.1] * STATE, [0.3] * STATE), statistics([0.2] * ACTION, [0.5] * ACTION)
    return Robot(body, Statistics(body.name, "delta", CHUNK, state, action))


def policy(slots: tuple[int, ...], **model) -> Policy:
    widths = {"max_state_dim": STATE_WIDTH, "max_action_dim": ACTION_WIDTH}
    network = tiny_model(num_views=VIEWS, **(widths | model))
    return Policy(network, PolicySpec(network.config, (robot(slots),), SamplerConfig(3, 2)))


def seen(acting: Policy) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = {
        key: torch.randint(0, 256, (2, 2, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        for _, key in acting.robot.embodiment.present_cameras
    }
    return images, torch.randn(2, STATE, generator=generator)


def sample(acting: Policy, observation: Observation) -> tuple[Tensor, Tensor]:
    return acting.model.sample(observation, acting.noise([0, 1], 0), 3, ACTION)


@pytest.mark.parametrize("slots", SLOTS)
def test_slots_that_are_padded_change_nothing(slots):
    acting = policy(slots)
    images, state = seen(acting)
    lean = acting.observe(images, state, ["go", "stop now"])
    processor = replace(acting.processor, slots=VIEWS)
    by_slot = {slot: images[key] for slot, key in acting.robot.embodiment.present_cameras}
    padded = processor.observation(by_slot, state, ["go", "stop now"])
    assert lean.images.shape[1] == max(slots) + 1
    assert padded.view_mask.sum(1).tolist() == [len(slots)] * 2
    actions, foresight = sample(acting, padded)
    expected, expected_foresight = sample(acting, lean)
    assert torch.allclose(actions, expected, atol=1e-5)
    assert torch.allclose(foresight[:, list(slots)], expected_foresight[:, list(slots)], atol=1e-5)
    noise = torch.randint(0, 256, padded.images.shape, dtype=torch.uint8)
    garbage = torch.where(padded.view_mask[:, :, None, None, None, None], padded.images, noise)
    again, again_foresight = sample(acting, replace(padded, images=garbage))
    assert torch.equal(again, actions)
    assert torch.equal(again_foresight[:, list(slots)], foresight[:, list(slots)])


def test_every_camera_that_is_there_counts():
    """The test above would pass for a model that ignores its cameras."""
    acting = policy((0, 1, 2, 3))
    images, state = seen(acting)
    actions = acting.predict(images, state, ["go", "go"], acting.noise([0, 1], 0)).actions
    for key in images:
        other = acting.predict(
            images | {key: 255 - images[key]}, state, ["go", "go"], acting.noise([0, 1], 0)
        ).actions
        assert not torch.allclose(other, actions, atol=1e-4), f"{key} is not looked at"


@torch.no_grad()
def test_weights_of_padded_dimensions_change_nothing():
    acting = policy((0, 1, 2, 3))
    images, state = seen(acting)
    before = acting.predict(images, state, ["go", "go"], acting.noise([0, 1], 0))
    assert before.actions.shape == (2, CHUNK, ACTION)
    head = acting.model.action
    head.state_proj.weight[:, STATE:] += 3
    head.in_proj.weight[:, ACTION:] += 3
    head.out_proj.weight[ACTION:] += 3
    head.out_proj.bias[ACTION:] += 3
    after = acting.predict(images, state, ["go", "go"], acting.noise([0, 1], 0))
    assert torch.equal(after.actions, before.actions)
    head.in_proj.weight[:, ACTION - 1] += 3
    assert not torch.equal(
        acting.predict(images, state, ["go", "go"], acting.noise([0, 1], 0)).actions, before.actions
    )


@torch.no_grad()
def test_a_wider_model_with_the_same_weights_answers_the_same():
    narrow = policy((0, 3), max_state_dim=STATE, max_action_dim=ACTION)
    wide = policy((0, 3))
    weights = narrow.model.state_dict()
    for name, tensor in wide.model.state_dict().items():
        tensor[tuple(slice(size) for size in weights[name].shape)] = weights[name]
    images, state = seen(wide)
    noise = wide.noise([0, 1], 0)
    expected = narrow.predict(images, state, ["go", "go"], noise[..., :ACTION])
    assert torch.allclose(
        wide.predict(images, state, ["go", "go"], noise).actions, expected.actions, atol=1e-5
    )


def batch_of(acting: Policy, slots: int) -> Batch:
    """Two samples to learn from, with so many camera slots."""
    images, state = seen(acting)
    processor = replace(acting.processor, slots=slots)
    by_slot = {slot: images[key] for slot, key in acting.robot.embodiment.present_cameras}
    observation = processor.observation(by_slot, state, ["go", "stop now"])
    absent = torch.full_like(next(iter(by_slot.values()))[:, 0], 255)
    return processor.batch(
        observation,
        future=torch.stack([by_slot[s][:, 1] if s in by_slot else absent for s in range(slots)], dim=1),
        future_mask=torch.ones(2, slots, dtype=torch.bool),
        actions=torch.randn(2, CHUNK, ACTION, generator=torch.Generator().manual_seed(8)),
        step_mask=torch.ones(2, CHUNK, dtype=torch.bool),
        index=torch.arange(2),
        state=state,
    )


@pytest.mark.parametrize("slots", [(0,), (0, 2)])
def test_learning_sees_nothing_of_what_is_padded(slots):
    acting = policy(slots)
    generator = torch.Generator().manual_seed(2)
    noise, level = torch.randn(2, 1, CHUNK, ACTION_WIDTH, generator=generator), torch.tensor([[0.3], [0.8]])
    sums = []
    for count in (max(slots) + 1, VIEWS):
        losses = acting.model.losses(batch_of(acting, count), noise, level)
        assert losses.action_count.tolist() == [CHUNK * ACTION] * 2
        sums.append(torch.stack([losses.action_sum, losses.foresight_sum, losses.foresight_count]))
    assert torch.allclose(*sums, rtol=1e-4)
    sums[1][:2].sum().backward()
    head = acting.model.action
    for gradient, real in (
        (head.state_proj.weight.grad, STATE),
        (head.in_proj.weight.grad, ACTION),
        (head.out_proj.weight.grad.T, ACTION),
    ):
        assert torch.count_nonzero(gradient[:, real:]) == 0
        assert (gradient[:, :real].abs().sum(0) > 0).all()

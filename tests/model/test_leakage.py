"""Nothing flows from a later block to an earlier one in the whole model, forwards or backwards."""

import pytest
import torch
from tests.model.tiny import ACTION_DIM, labelled, tiny_noise, with_observation
from torch import Tensor

from vla_mot.batch import Batch
from vla_mot.model.model import VlaMotModel
from vla_mot.nn.masks import GENERATION, STATE, UNDERSTANDING


def predict(model: VlaMotModel, batch: Batch, noise: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Velocity and foresight of the joint pass."""
    with torch.no_grad():
        return model._joint(batch, noise, level)


def cached(model: VlaMotModel, batch: Batch) -> dict[int, list[Tensor]]:
    """Per block its cached keys and values of every layer: all that anything later can read of it."""
    with torch.no_grad():
        prefix = model.prefill(batch.observation)
    return {
        block: [x[:, prefix.layout.block == block] for x in prefix.kv_cache.keys + prefix.kv_cache.values]
        for block in (UNDERSTANDING, GENERATION, STATE)
    }


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def changed(batch: Batch, part: str) -> Batch:
    images = batch.observation.images.clone()
    if part == "state":
        return with_observation(batch, state=batch.observation.state + 1)
    if part == "instruction":
        return with_observation(batch, token_ids=(batch.observation.token_ids + 7) % 256)
    images[:, :, 0 if part == "history" else 1] //= 2
    return with_observation(batch, images=images)


@pytest.mark.parametrize(
    ("part", "touched"),
    [
        ("state", [STATE]),
        ("history", [GENERATION, STATE]),
        ("present", [UNDERSTANDING, GENERATION, STATE]),
        ("instruction", [UNDERSTANDING, GENERATION, STATE]),
    ],
)
def test_each_input_reaches_its_own_block_and_later_ones_only(
    model: VlaMotModel, batch: Batch, part: str, touched: list[int]
) -> None:
    before, after = cached(model, batch), cached(model, changed(batch, part))
    assert [block for block in before if not same(before[block], after[block])] == touched


@pytest.mark.parametrize("part", ["actions", "noise", "noise_level", "state"])
def test_actions_and_state_change_the_velocity_but_no_bit_of_the_foresight(
    model: VlaMotModel, batch: Batch, part: str
) -> None:
    batch, (noise, level) = labelled(batch), tiny_noise(batch)
    velocity, foresight = predict(model, batch, noise, level)
    other = {"noise": noise, "level": level, "batch": batch}
    if part == "noise":
        other["noise"] = noise * -2
    elif part == "noise_level":
        other["level"] = level / 2
    elif part == "state":
        other["batch"] = changed(batch, "state")
    else:
        other["batch"] = labelled(batch)
        other["batch"].actions.mul_(-2)
    moved, unmoved = predict(model, **other)
    assert torch.equal(foresight, unmoved)
    assert not torch.isclose(velocity, moved).any()


def test_the_future_changes_no_prediction(model: VlaMotModel, batch: Batch) -> None:
    noise, level = tiny_noise(batch)
    before = predict(model, batch, noise, level)
    batch.future.copy_(255 - batch.future)
    assert same(list(before), list(predict(model, batch, noise, level)))


def test_the_foresight_sends_no_gradient_to_state_or_noise(model: VlaMotModel, batch: Batch) -> None:
    batch, (noise, level) = labelled(batch), tiny_noise(batch)
    later = [batch.observation.state.requires_grad_(), noise.requires_grad_(), level.requires_grad_()]
    velocity, foresight = model._joint(batch, noise, level)
    for gradient in torch.autograd.grad(foresight.square().sum(), later, retain_graph=True):
        assert torch.count_nonzero(gradient) == 0
    for gradient in torch.autograd.grad(velocity.square().sum(), later):
        assert gradient.abs().max() > 1e-3


def test_the_velocity_learns_through_the_history(batch: Batch, model: VlaMotModel) -> None:
    noise, level = tiny_noise(batch)
    velocity, _ = model._joint(labelled(batch), noise, level)
    (gradient,) = torch.autograd.grad(velocity.square().sum(), [model.generation.in_proj.weight])
    assert gradient.abs().max() > 1e-3


def test_draws_do_not_see_each_other(model: VlaMotModel, batch: Batch) -> None:
    batch, (noise, level) = labelled(batch), tiny_noise(batch, draws=3)
    before, _ = predict(model, batch, noise, level)
    noise[:, 1] += 1
    after, _ = predict(model, batch, noise, level)
    assert torch.equal(before[:, ::2], after[:, ::2])
    assert not torch.isclose(before[:, 1], after[:, 1]).any()


def test_absent_cameras_and_padded_text_change_no_bit(model: VlaMotModel, batch: Batch) -> None:
    batch, (noise, level) = labelled(batch), tiny_noise(batch)
    velocity, foresight = predict(model, batch, noise, level)
    seen, told = batch.observation.view_mask, batch.observation.token_mask
    images = torch.where(seen[:, :, None, None, None, None], batch.observation.images, 255)
    tokens = torch.where(told, batch.observation.token_ids, 99)
    other = with_observation(batch, images=images.to(torch.uint8), token_ids=tokens)
    moved, unmoved = predict(model, other, noise, level)
    assert torch.equal(velocity, moved) and torch.equal(foresight[seen], unmoved[seen])


def test_padded_steps_and_dimensions_change_no_real_velocity(model: VlaMotModel, batch: Batch) -> None:
    noise, level = tiny_noise(batch)
    real = batch.action_mask.unsqueeze(1)
    before, _ = predict(model, batch, noise, level)
    after, _ = predict(model, batch, torch.where(real, noise, 30.0), level)
    assert torch.equal(before[real], after[real])
    assert noise.shape[-1] == ACTION_DIM

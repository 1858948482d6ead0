"""Knowledge insulation: the action expert reads, and what it reads does not learn from it."""

from itertools import product

import pytest
import torch
from tests.model.tiny import FAMILIES, labelled, tiny_batch, tiny_model, tiny_noise
from tests.nn.small import COUNTS, GEOMETRY, by_block, by_expert, small_stack, small_tokens

from vla_mot.model.model import Losses, VlaMotModel
from vla_mot.nn.attention import attend, attend_insulated
from vla_mot.nn.masks import ACTION, GENERATION, STATE, UNDERSTANDING, TokenLayout, build_attn_mask
from vla_mot.nn.recompute import Recompute
from vla_mot.nn.rope import rotation

ALL = ("understanding", "generation", "action")
EARLY, LATE = (UNDERSTANDING, GENERATION), (STATE, ACTION)


@pytest.mark.parametrize("outputs", [ALL, ("generation", "action"), ("action",)])
@pytest.mark.parametrize("training", [True, False])
def test_no_value_changes(outputs: tuple[str, ...], training: bool) -> None:
    stack, (blocks, layout, positions) = small_stack().train(training), small_tokens()
    turn, mask = rotation(positions, GEOMETRY.head_dim, GEOMETRY.rope), build_attn_mask(layout)
    plain, cache = stack(by_expert(blocks), turn, mask, outputs=outputs)
    stack.insulate = True
    walled, walled_cache = stack(by_expert(blocks), turn, mask, outputs=outputs)
    for name in outputs:
        assert torch.allclose(plain[name], walled[name], atol=1e-6)
    for mine, theirs in zip(walled_cache.values, cache.values, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_attention_with_and_without_the_wall_has_the_same_values() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 9, heads, 8, generator=generator) for heads in (4, 2, 2))
    early, late = torch.ones(2, 6, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
    mask = build_attn_mask(
        TokenLayout.concat([TokenLayout.of(UNDERSTANDING, early), TokenLayout.of(ACTION, late)])
    )
    expected = attend(query, key, value, mask)
    assert torch.allclose(attend_insulated(query, key, value, mask, readers=3), expected, atol=1e-6)
    alone = attend_insulated(query[:, 6:], key, value, mask[:, 6:], readers=3)
    assert torch.allclose(alone, expected[:, 6:], atol=1e-6)


@pytest.mark.parametrize("recompute", ["none", "full", "selective"])
def test_gradients_of_late_blocks_stop_at_the_wall_and_all_others_stay(recompute: Recompute) -> None:
    found = {}
    for insulate, block in product((False, True), COUNTS):
        stack, (blocks, layout, positions) = small_stack().train(), small_tokens()
        stack.insulate, stack.recompute = insulate, recompute
        blocks = {b: tokens.requires_grad_() for b, tokens in blocks.items()}
        turn, mask = rotation(positions, GEOMETRY.head_dim, GEOMETRY.rope), build_attn_mask(layout)
        states, _ = stack(by_expert(blocks), turn, mask, outputs=ALL)
        by_block(states)[block].square().sum().backward()
        for read, tokens in blocks.items():
            found[insulate, block, read] = torch.zeros(1) if tokens.grad is None else tokens.grad
    for late in LATE:
        for early in EARLY:
            assert torch.count_nonzero(found[True, late, early]) == 0
            assert found[False, late, early].abs().max() > 1e-4
        for own in LATE[: LATE.index(late) + 1]:
            assert torch.allclose(found[True, late, own], found[False, late, own], atol=1e-5)
    for first in EARLY:
        for second in EARLY:
            assert torch.allclose(found[True, first, second], found[False, first, second], atol=1e-5)


def learned(
    model: VlaMotModel, losses: Losses, *, action: float, foresight: float
) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (action * losses.action_sum.sum() + foresight * losses.foresight_sum.sum()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def of_action(name: str) -> bool:
    return name.startswith("action.") or ".action." in name


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_action_loss_trains_the_action_expert_alone(family: str, draws: int) -> None:
    model, batch = tiny_model(family=family).train(), labelled(tiny_batch())
    noise, level = tiny_noise(batch, draws)
    plain = model.losses(batch, noise, level)
    model.stack.insulate = True
    walled = model.losses(batch, noise, level)
    assert torch.allclose(plain.action_sum, walled.action_sum, rtol=1e-5)
    assert torch.allclose(plain.foresight_sum, walled.foresight_sum, rtol=1e-5)
    alone = learned(model, model.losses(batch, noise, level), action=1.0, foresight=0.0)
    for name, gradient in alone.items():
        reached = torch.count_nonzero(gradient) > 0
        assert reached == of_action(name), name
    both = learned(model, walled, action=1.0, foresight=1.0)
    model.stack.insulate = False
    expected = learned(model, model.losses(batch, noise, level), action=0.0, foresight=1.0)
    others = [name for name in both if not of_action(name)]
    assert all(torch.count_nonzero(both[name]) > 0 for name in others)
    mine, theirs = (torch.cat([found[name].flatten() for name in others]) for found in (both, expected))
    assert (mine - theirs).norm() < 1e-5 * theirs.norm()


@torch.no_grad()
def test_sampling_changes_no_bit() -> None:
    batch = tiny_batch()
    noise, _ = tiny_noise(batch)
    actions = []
    for insulate in (False, True):
        model = tiny_model().eval()
        model.stack.insulate = insulate
        actions.append(model.sample(batch.observation, noise[:, 0], 2, 3))
    for plain, walled in zip(*actions, strict=True):
        assert torch.equal(plain, walled)

"""Models with a part taken away: without generation expert, without foresight loss, without history.

Each must lose what it says and nothing else, for an ablation to mean something.
"""

from dataclasses import replace

import pytest
import torch
from tests.model.tiny import labelled, tiny_batch, tiny_config, tiny_model, tiny_noise, with_observation
from torch import Tensor

from vla_mot.batch import Batch
from vla_mot.errors import ConfigError
from vla_mot.model.config import ModelConfig
from vla_mot.model.model import VlaMotModel
from vla_mot.model.objective import joint, objective
from vla_mot.nn.expert import ExpertConfig
from vla_mot.train.config import TrainConfig
from vla_mot.train.parallel import arrange

WITHOUT = {"generation": None, "foresight": None}


def other_history(batch: Batch) -> Batch:
    images = batch.observation.images.clone()
    images[:, :, 0] = 255 - images[:, :, 0]
    return with_observation(batch, images=images)


def answers(model: VlaMotModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    """Joint velocity, and sampled actions with their foresight."""
    noise, level = tiny_noise(batch)
    with torch.no_grad():
        return model._joint(batch, noise, level)[0], *model.sample(batch.observation, noise[:, 0], 2, 3)


# ---- without generation expert ------------------------------------------------------------------------------


def test_without_generation_expert_no_history_reaches_an_action_and_nothing_is_foreseen(batch: Batch) -> None:
    model, batch = tiny_model(**WITHOUT).eval(), labelled(batch)
    velocity, actions, foresight = answers(model, batch)
    moved, acted, _ = answers(model, other_history(batch))
    assert torch.equal(velocity, moved) and torch.equal(actions, acted) and foresight is None
    assert not [name for name in model.state_dict() if name.startswith(("generation", "tokenizer"))]
    full, unlike = tiny_model().eval(), other_history(batch)
    assert not torch.isclose(
        answers(full, batch)[0], answers(full, unlike)[0]
    ).any()  # where it is there, it does


def test_without_generation_expert_the_state_stands_behind_the_instruction(batch: Batch) -> None:
    tokens, whole = (
        model.prefix_tokens(batch.observation) for model in (tiny_model(**WITHOUT), tiny_model())
    )
    understood, state = tokens.positions
    last = torch.where(tokens.layouts[0].valid, understood, -1).amax((0, 2))
    assert torch.equal(state[:, :, 0], (last + 1).expand(len(state), -1))
    assert torch.equal(understood, whole.positions[0]) and len(whole.positions) == 3


def test_without_generation_expert_the_losses_are_of_actions_alone(batch: Batch) -> None:
    model = tiny_model(**WITHOUT)
    with torch.no_grad():
        losses = model.losses(batch, *tiny_noise(batch))
    assert float(losses.foresight_sum.sum()) == float(losses.foresight_count.sum()) == 0
    assert torch.equal(torch.stack(model.loss_counts(batch, 1)), torch.stack(losses[1::2]))
    assert float(losses.action_sum.sum()) > 0


def test_without_generation_expert_cached_sampling_equals_the_joint_pass(batch: Batch) -> None:
    model, batch = tiny_model(**WITHOUT).eval(), labelled(batch)
    noise, level = tiny_noise(batch)
    with torch.no_grad():
        joint, _ = model._joint(replace(batch, actions=torch.zeros_like(batch.actions)), noise, level)
        x = level[:, 0, None, None] * noise[:, 0]
        alone = model.denoise(model.prefill(batch.observation), x, level[:, 0])
    torch.testing.assert_close(alone, joint[:, 0], rtol=1e-4, atol=1e-5)


def test_without_generation_expert_everything_else_trains() -> None:
    model, batch = tiny_model(**WITHOUT), tiny_batch()
    arrange(model, TrainConfig())
    objective(model.losses(batch, *tiny_noise(batch)), 0.01).total.backward()
    asked = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert asked == {name for name, weight in model.named_parameters() if weight.grad is not None}


def test_a_model_has_generation_expert_and_tokenizer_or_neither() -> None:
    with pytest.raises(ConfigError, match=r"both or neither.*Set model\.generation=null and foresight=none"):
        tiny_config(generation=None)
    with pytest.raises(ConfigError, match="both or neither"):
        tiny_config(**WITHOUT | {"generation": ExpertConfig(8, 8)})
    config = tiny_config(**WITHOUT)
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_whoever_asks_for_frames_or_foresight_of_it_is_told(batch: Batch) -> None:
    model = tiny_model(**WITHOUT)
    for ask in (
        lambda: model.encode_frames(batch.observation.images),
        lambda: model.decode_latents(torch.zeros(1, 1, 16, 4, 4)),
        lambda: model.fit_tokenizer(batch.future.flatten(0, 1)),
    ):
        with pytest.raises(ConfigError, match="no generation expert"):
            ask()


# ---- without foresight loss ---------------------------------------------------------------------------------


def test_with_weight_zero_the_expert_learns_from_actions_alone_and_its_foresight_stays() -> None:
    model, batch = tiny_model(), tiny_batch()
    arrange(model, TrainConfig(foresight_weight=0.0))
    losses = model.losses(batch, *tiny_noise(batch))
    goal = objective(losses, 0.0)
    goal.total.backward()
    got = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert got == {name for name, weight in model.named_parameters() if weight.requires_grad}
    head = ("generation.upsample", "generation.norm", "generation.out_proj", "stack.norms.generation")
    last = "stack.layers.1.experts.generation"
    unread = (*head, f"{last}.mlp", f"{last}.self_attn.q_proj", f"{last}.self_attn.o_proj")
    assert not [name for name in got if name.startswith(unread)]
    for name in (
        "generation.in_proj.weight",
        f"{last}.self_attn.k_proj.weight",
        f"{last}.self_attn.v_proj.weight",
    ):
        assert model.get_parameter(name).grad.abs().max() > 0, name
    assert float(goal.foresight) > 0  # it is still reported


def test_weight_zero_hears_nothing_of_the_foresight_not_even_nonsense() -> None:
    losses = tiny_model().losses(tiny_batch(), *tiny_noise(tiny_batch()))
    broken = losses._replace(foresight_sum=losses.foresight_sum * float("nan"))
    assert bool(objective(broken, 0.0).total.isfinite()) and not bool(objective(broken, 0.1).total.isfinite())
    assert joint(1.0, float("nan"), 0.0) == joint(1.0, None, 0.1) == 1.0


# ---- without history ----------------------------------------------------------------------------------------


def test_history_of_the_present_is_the_present_frame_twice_in_training_and_acting(batch: Batch) -> None:
    model, batch = tiny_model(history="present").eval(), labelled(batch)
    still = with_observation(batch, images=batch.observation.images[:, :, 1:].expand(-1, -1, 2, -1, -1, -1))
    plain = tiny_model().eval()
    for mine, moved, told in zip(
        answers(model, batch), answers(model, other_history(batch)), answers(plain, still), strict=True
    ):
        assert torch.equal(mine, moved) and torch.equal(mine, told)
    latents = plain.encode_frames(batch.observation.images)
    kept = with_observation(batch, latents=latents)
    torch.testing.assert_close(answers(model, kept)[0], answers(model, batch)[0])

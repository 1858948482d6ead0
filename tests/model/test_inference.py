"""One answer, however it is computed: cached or not, padded or not, in whatever order."""

from dataclasses import replace

import pytest
import torch
from tests.model.tiny import (
    ACTION_DIM,
    CHUNK,
    FAMILIES,
    PAD,
    labelled,
    tiny_model,
    tiny_noise,
    with_observation,
)

from vla_mot.batch import Batch, Observation
from vla_mot.flow.matching import interpolate
from vla_mot.flow.solvers import integrate
from vla_mot.model.model import VlaMotModel

TOLERANCE = 1e-5


def answer(model: VlaMotModel, observation: Observation, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Velocity at one fixed noisy chunk, and foresight."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, CHUNK, ACTION_DIM, generator=generator)[: observation.batch_size]
    level = torch.rand(4, generator=generator)[: observation.batch_size]
    with torch.no_grad():
        prefix = model.prefill(observation)
        return model.denoise(prefix, x, level), prefix.foresight


@pytest.mark.parametrize("mask_padding", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_inference_equals_the_joint_pass(batch: Batch, family: str, mask_padding: bool) -> None:
    model = tiny_model(family=family, mask_padding=mask_padding).eval()
    batch, (noise, level) = labelled(batch), tiny_noise(batch)
    x = interpolate(noise[:, 0], batch.actions, level[:, 0])
    with torch.no_grad():
        velocity, foresight = model._joint(batch, noise, level)
        prefix = model.prefill(batch.observation)
        assert torch.allclose(model.denoise(prefix, x, level[:, 0]), velocity[:, 0], atol=TOLERANCE)
    present = batch.observation.view_mask
    assert torch.allclose(prefix.foresight[present], foresight[present], atol=TOLERANCE)


@torch.no_grad()
def test_denoising_leaves_the_cache_as_it_was(model: VlaMotModel, batch: Batch) -> None:
    prefix, (noise, level) = model.prefill(batch.observation), tiny_noise(batch)
    tensors = (*prefix.kv_cache.keys, *prefix.kv_cache.values, prefix.last_position, prefix.layout.valid)
    kept = [tensor.clone() for tensor in tensors]
    first = model.denoise(prefix, noise[:, 0], level[:, 0])
    model.denoise(prefix, noise[:, 0] * 2, level[:, 0] / 2)
    assert torch.equal(first, model.denoise(prefix, noise[:, 0], level[:, 0]))
    assert all(torch.equal(a, b) for a, b in zip(kept, tensors, strict=True))


@torch.no_grad()
def test_sampling_is_euler_over_denoise_with_padded_dimensions_at_zero(batch: Batch) -> None:
    noise, _ = tiny_noise(batch)
    for mask_padding in (True, False):
        model = tiny_model(mask_padding=mask_padding).eval()
        actions, foresight = model.sample(batch.observation, noise[:, 0], num_steps=3, action_dim=3)
        prefix, real = model.prefill(batch.observation), torch.ones(ACTION_DIM)
        real[3:] = 0 if mask_padding else 1
        expected = integrate(
            lambda x, s, m=model, p=prefix, r=real: m.denoise(p, x, s) * r, noise[:, 0] * real, 3
        )
        assert torch.equal(actions, expected) and torch.equal(foresight, prefix.foresight)
        assert (torch.count_nonzero(actions[..., 3:]) == 0) == mask_padding


def test_more_text_padding_changes_nothing(model: VlaMotModel, batch: Batch) -> None:
    observation, longer = batch.observation, 5
    ids = torch.cat((observation.token_ids, torch.full((4, longer), PAD)), dim=1)
    mask = torch.cat((observation.token_mask, torch.zeros(4, longer, dtype=torch.bool)), dim=1)
    padded = replace(observation, token_ids=ids, token_mask=mask)
    seen, (v, f), (w, g) = observation.view_mask, answer(model, observation), answer(model, padded)
    assert torch.allclose(v, w, atol=TOLERANCE) and torch.allclose(f[seen], g[seen], atol=TOLERANCE)


@pytest.mark.parametrize("absent", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_absent_camera_equals_a_robot_without_it(batch: Batch, family: str, absent: int) -> None:
    model = tiny_model(family=family).eval()
    kept = [view for view in range(3) if view != absent]
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[:, absent] = False
    masked = with_observation(batch, view_mask=mask).observation
    trimmed = replace(masked, images=masked.images[:, kept], view_mask=mask[:, kept])
    (v, f), (w, g) = answer(model, masked), answer(model, trimmed)
    assert torch.allclose(v, w, atol=TOLERANCE) and torch.allclose(f[:, kept], g, atol=TOLERANCE)


def test_permuting_the_batch_permutes_the_answers(model: VlaMotModel, batch: Batch) -> None:
    order, (noise, level) = torch.tensor([2, 0, 3, 1]), tiny_noise(batch, draws=2)
    with torch.no_grad():
        velocity, foresight = model._joint(batch, noise, level)
        moved, seen = model._joint(batch[order], noise[order], level[order])
    real = batch.action_mask[order].unsqueeze(1).expand_as(moved)
    present = batch.observation.view_mask[order]
    assert torch.allclose(moved[real], velocity[order][real], atol=TOLERANCE)
    assert torch.allclose(seen[present], foresight[order][present], atol=TOLERANCE)


def test_float_pictures_equal_bytes(model: VlaMotModel, batch: Batch) -> None:
    floats = with_observation(batch, images=batch.observation.images.float() / 255).observation
    (v, f), (w, g) = answer(model, batch.observation), answer(model, floats)
    assert torch.equal(v, w) and torch.equal(f, g)


def test_a_sample_without_any_camera_or_text_stays_finite(model: VlaMotModel, batch: Batch) -> None:
    blind = with_observation(
        batch,
        view_mask=torch.zeros_like(batch.observation.view_mask),
        token_mask=torch.zeros_like(batch.observation.token_mask),
    )
    velocity, foresight = answer(model, blind.observation)
    assert velocity.isfinite().all() and foresight.isfinite().all()
    assert model.prefill(blind.observation).last_position.tolist() == [0] * 4  # the state is its first token


def test_predicted_latents_decode_to_pictures_of_every_view(model: VlaMotModel, batch: Batch) -> None:
    smooth = torch.linspace(0.2, 0.8, 32).expand(4, 3, 2, 3, 32, 32)
    latents = model.encode_frames(smooth)
    assert latents.shape == (4, 3, 2, 16, 4, 4) and not latents.requires_grad
    pictures = model.decode_latents(latents[:, :, 1])
    assert torch.allclose(pictures, smooth[:, :, 1], atol=0.01)
    assert float(model.decode_latents(latents[:, :, 1] * 9).min()) >= 0
    assert float(model.decode_latents(latents[:, :, 1] * 9).max()) <= 1
    larger = torch.nn.functional.interpolate(smooth.flatten(0, 2), size=(64, 64)).view(4, 3, 2, 3, 64, 64)
    assert torch.allclose(model.encode_frames(larger), latents, atol=0.1)


@torch.no_grad()
def test_positions_count_real_tokens_and_continue_on_every_axis(model: VlaMotModel, batch: Batch) -> None:
    tokens = model.prefix_tokens(batch.observation)
    layouts, positions = tokens.layouts, tokens.positions
    # A view spans 1 + 2 + 1 positions, its 2 × 2 grid sharing one time; sample 1 has two views and two words.
    assert positions[0][:, 1, :6].tolist() == [[0, 1, 1, 1, 1, 3], [0, 1, 1, 2, 2, 3], [0, 1, 2, 1, 2, 3]]
    assert positions[0][0, 1, -6:-4].tolist() == [8, 9]
    generation, state = positions[1][:, 1, layouts[1].valid[1]], positions[2][:, 1, 0]
    assert generation.tolist() == [list(range(10, 26))] * 3 and state.tolist() == [26] * 3
    actions = model.action_positions(model.prefill(batch.observation).last_position, draws=2)
    assert actions[:, 1].tolist() == [[27, 28, 29, 30] * 2] * 3


@torch.no_grad()
def test_positions_of_one_axis_count_real_tokens_too(batch: Batch) -> None:
    model = tiny_model(family="internvl3").eval()
    tokens = model.prefix_tokens(batch.observation)
    assert tokens.where.shape[0] == 1
    # Sample 1 has two views of 1 + 4 + 1 tokens and two words, then 16 generation tokens and the state.
    assert tokens.where[0, 1, tokens.layout.valid[1]].tolist() == list(range(12 + 2 + 16 + 1))
    actions = model.action_positions(tokens.last_position, draws=2)
    assert actions[:, 1].tolist() == [[31, 32, 33, 34] * 2]


@torch.no_grad()
def test_released_positions_count_an_absent_camera_when_sampling_and_only_then(batch: Batch) -> None:
    real, released = tiny_model().eval(), tiny_model(positions="released").eval()
    noise, level = tiny_noise(batch)
    assert all(map(torch.equal, real._joint(batch, noise, level), released._joint(batch, noise, level)))
    ours, theirs = (model.prefill(batch.observation) for model in (real, released))
    # Samples 1 and 2 lack one camera, that is 8 generation tokens; 0 and 3 lack none.
    assert (theirs.last_position - ours.last_position).tolist() == [0, 8, 8, 0]
    assert torch.equal(ours.layout.valid, theirs.layout.valid)
    changed = (ours.foresight - theirs.foresight).abs().amax((2, 3, 4)) > 1e-4
    # In sample 1 two views see each other across the gap; in sample 2 it lies behind both.
    assert changed.tolist() == [[False] * 3, [True, False, True], [False] * 3, [False] * 3]

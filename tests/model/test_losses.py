from dataclasses import replace

import pytest
import torch
from tests.model.stock import AS_STOCK
from tests.model.tiny import tiny_batch, tiny_model, tiny_noise, with_observation
from torch import Tensor

from vla_mot.batch import Batch
from vla_mot.model.model import Losses, VlaMotModel

VARIANTS: dict[str, dict] = {
    "qwen3_vl": {},
    "qwen3_vl with DeepStack": {"backbone": AS_STOCK["qwen3_vl"]},
    "internvl3": {"family": "internvl3"},
}


def total(losses: Losses) -> Tensor:
    return losses.action_sum.sum() + 0.1 * losses.foresight_sum.sum()


def gradients(model: VlaMotModel, loss: Tensor) -> dict[str, Tensor]:
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return {name: g for name, g in zip(trained, found, strict=True) if g is not None}


def scrambled(batch: Batch, noise: Tensor, level: Tensor) -> tuple[Batch, Tensor, Tensor]:
    """Another batch that differs in every masked place, and in no other."""
    seen = batch.observation.view_mask[:, :, None, None, None, None]
    real = batch.action_mask
    other = with_observation(
        batch,
        images=torch.where(seen, batch.observation.images, 255 - batch.observation.images),
        token_ids=torch.where(batch.observation.token_mask, batch.observation.token_ids, 17),
    )
    future = torch.where(batch.future_mask[:, :, None, None, None], batch.future, 255 - batch.future)
    other = replace(other, future=future, actions=torch.where(real, batch.actions, 1000.0))
    labelled = real.flatten(1).any(1)[:, None]
    return other, torch.where(real.unsqueeze(1), noise, -500.0), torch.where(labelled, level, 0.77)


@pytest.mark.parametrize("family", VARIANTS)
def test_masked_places_change_no_bit_of_losses_and_gradients(batch: Batch, family: str) -> None:
    model, (noise, level) = tiny_model(**VARIANTS[family]), tiny_noise(batch, draws=2)
    results = []
    for inputs in ((batch, noise, level), scrambled(batch, noise, level)):
        losses = model.losses(*inputs)
        results.append((losses, gradients(model, total(losses))))
    (first, first_gradients), (second, second_gradients) = results
    for name in ("action_sum", "action_count", "foresight_sum", "foresight_count"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    for name, gradient in first_gradients.items():
        assert torch.equal(gradient, second_gradients[name]), name
        assert gradient.isfinite().all(), name


def test_sums_and_counts_are_those_of_a_loop_over_real_places(model: VlaMotModel, batch: Batch) -> None:
    noise, level = tiny_noise(batch, draws=2)
    with torch.no_grad():
        losses = model.losses(batch, noise, level)
        predicted, latents = model._joint(batch, noise, level)
        future = model.encode_frames(batch.future.unsqueeze(2)).squeeze(2)
    target = noise - batch.actions.unsqueeze(1)
    for row in range(4):
        places = [(k, *at) for k in range(2) for at in batch.action_mask[row].nonzero().tolist()]
        errors = [float(predicted[(row, *at)] - target[(row, *at)]) ** 2 for at in places]
        assert int(losses.action_count[row]) == len(places)
        torch.testing.assert_close(float(losses.action_sum[row]), sum(errors, 0.0), rtol=1e-5, atol=1e-5)
        views = batch.future_mask[row].nonzero().flatten().tolist()
        misses = [float((latents[row, v] - future[row, v]).square().sum()) for v in views]
        assert int(losses.foresight_count[row]) == len(views) * 16 * 4 * 4
        torch.testing.assert_close(float(losses.foresight_sum[row]), sum(misses, 0.0), rtol=1e-5, atol=1e-5)
    assert losses.action_count.tolist() == [40, 12, 0, 24]
    assert losses.foresight_count.tolist() == [768, 512, 512, 0]


def test_two_halves_add_up_to_the_whole(batch: Batch) -> None:
    model, (noise, level) = tiny_model(), tiny_noise(batch, draws=2)
    whole = model.losses(batch, noise, level)
    halves = [model.losses(batch[rows], noise[rows], level[rows]) for rows in (slice(0, 2), slice(2, 4))]
    for name in ("action_sum", "action_count", "foresight_sum", "foresight_count"):
        joined = torch.cat([getattr(half, name) for half in halves])
        assert torch.allclose(joined, getattr(whole, name), rtol=1e-5), name
    first, second = (gradients(model, total(half)) for half in halves)
    for name, gradient in gradients(model, total(whole)).items():
        assert torch.allclose(first[name] + second[name], gradient, rtol=1e-3, atol=2e-4), name


def test_draws_that_share_a_prefix_equal_separate_passes(batch: Batch) -> None:
    model, (noise, level) = tiny_model(), tiny_noise(batch, draws=3)
    shared = model.losses(batch, noise, level)
    alone = [model.losses(batch, noise[:, k : k + 1], level[:, k : k + 1]) for k in range(3)]
    assert torch.allclose(shared.action_sum, torch.stack([one.action_sum for one in alone]).sum(0), rtol=1e-5)
    assert torch.equal(shared.action_count, torch.stack([one.action_count for one in alone]).sum(0))
    for one in alone:
        assert torch.allclose(shared.foresight_sum, one.foresight_sum, rtol=1e-5)
        assert torch.equal(shared.foresight_count, one.foresight_count)
    separate = [gradients(model, one.action_sum.sum()) for one in alone]
    for name, gradient in gradients(model, shared.action_sum.sum()).items():
        expected = torch.stack([g[name] for g in separate]).sum(0)
        assert torch.allclose(gradient, expected, rtol=1e-3, atol=2e-4), name


def test_without_mask_padding_noise_in_padded_places_is_part_of_the_input(batch: Batch) -> None:
    model, (noise, level) = tiny_model(mask_padding=False), tiny_noise(batch)
    before = model.losses(batch, noise, level)
    after = model.losses(batch, torch.where(batch.action_mask.unsqueeze(1), noise, 3.0), level)
    assert not torch.allclose(before.action_sum[[1, 3]], after.action_sum[[1, 3]], rtol=1e-3)
    assert torch.equal(before.action_count, after.action_count)


def test_recomputing_changes_no_bit(batch: Batch) -> None:
    noise, level = tiny_noise(batch, draws=2)
    results = []
    for recompute in ("none", "full", "selective"):
        model = tiny_model().train()
        model.stack.recompute = recompute
        losses = model.losses(batch, noise, level)
        results.append((losses.action_sum, losses.foresight_sum, *gradients(model, total(losses)).values()))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*results, strict=True))


@pytest.mark.parametrize("family", VARIANTS)
def test_every_trained_weight_gets_a_gradient(batch: Batch, family: str) -> None:
    model, (noise, level) = tiny_model(**VARIANTS[family]), tiny_noise(batch)
    reached = gradients(model, total(model.losses(batch, noise, level)))
    assert set(reached) == {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert [name for name, gradient in reached.items() if torch.count_nonzero(gradient) == 0] == []


@pytest.mark.parametrize("family", VARIANTS)
def test_frozen_weights_are_those_that_nothing_reads(batch: Batch, family: str) -> None:
    model, (noise, level) = tiny_model(**VARIANTS[family]), tiny_noise(batch)
    before = total(model.losses(batch, noise, level))
    frozen = {name: weight for name, weight in model.named_parameters() if not weight.requires_grad}
    # After the last understanding keys and values: q, o, three of the MLP, two norms, and q_norm or a bias of q.
    # Beside them the six weights of each DeepStack merger that nothing reads, or the untied head.
    assert len(frozen) == 8 + {"qwen3_vl": 6, "qwen3_vl with DeepStack": 0, "internvl3": 1}[family]
    with torch.no_grad():
        for weight in frozen.values():
            weight.add_(1)
    assert torch.equal(before, total(model.losses(batch, noise, level)))


def test_a_batch_without_labels_or_futures_has_counts_of_zero(model: VlaMotModel) -> None:
    batch = tiny_batch()[2:3]
    batch = replace(batch, future_mask=torch.zeros_like(batch.future_mask))
    losses = model.losses(batch, *tiny_noise(batch))
    for name in ("action_sum", "action_count", "foresight_sum", "foresight_count"):
        assert getattr(losses, name).tolist() == [0]


def test_the_padded_loss_averages_over_every_place_of_labelled_samples(batch: Batch) -> None:
    """As the released training does; sample 2 has no action label and counts nothing."""
    noise, level = tiny_noise(batch, draws=2)
    open_input = {"mask_padding": False}
    real, padded = tiny_model(**open_input), tiny_model(**open_input, action_loss="padded")
    losses, reference = padded.losses(batch, noise, level), real.losses(batch, noise, level)
    assert losses.action_count.tolist() == [40, 40, 0, 40]
    assert torch.equal(losses.foresight_sum, reference.foresight_sum)
    predicted, _ = padded._joint(batch, noise, level)
    squared = (predicted - (noise - batch.actions.unsqueeze(1))).square().flatten(1).sum(1)
    assert torch.allclose(losses.action_sum, squared * torch.tensor([1, 1, 0, 1]), rtol=1e-5)

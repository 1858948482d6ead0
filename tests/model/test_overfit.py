import torch
from tests.model.tiny import labelled, tiny_batch, tiny_config, tiny_noise, with_observation

from vla_mot.batch import Batch
from vla_mot.model.model import VlaMotModel


def pictured() -> Batch:
    """Smooth pictures that differ between samples, and a future that differs from the present."""
    batch = labelled(tiny_batch())
    ramp = torch.linspace(0, 1, 32).expand(32, 32)
    tint = torch.rand(4, 3, 3, 3, 1, 1, generator=torch.Generator().manual_seed(4))
    frames = tint * ramp + (1 - tint) * ramp.T * 0.5
    return with_observation(
        Batch(
            batch.observation,
            frames[:, :, 2],
            batch.future_mask,
            batch.actions,
            batch.action_mask,
            batch.index,
        ),
        images=frames[:, :, :2],
    )


def test_one_batch_is_learned_by_heart() -> None:
    torch.manual_seed(0)
    model, batch = VlaMotModel(tiny_config()), pictured()
    noise, level = tiny_noise(batch, draws=2)
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=5e-3)
    history = []
    for step in range(150):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / 150)
        losses = model.losses(batch, noise, level)
        action = losses.action_sum.sum() / losses.action_count.sum()
        foresight = losses.foresight_sum.sum() / losses.foresight_count.sum()
        history.append((action.item(), foresight.item()))
        optimizer.zero_grad()
        (action + foresight).backward()
        optimizer.step()
    assert history[-1][0] < history[0][0] / 20, history[::30]
    assert history[-1][1] < history[0][1] / 20, history[::30]

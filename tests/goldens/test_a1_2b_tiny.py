"""Our 2B model with the released weights computes the released numbers (`a1_2b_tiny/README.txt`, `FACTS.md` §12).

Reached in float32 on a CPU, absolute: latents 1.1e-5, embeddings 7e-6, expert outputs, velocities and foresight 1.5e-5,
sampled actions 4e-6, squared errors 5e-5, losses 2e-6; gradient norms 5e-6 relative. Positions and mask are exact. The
bounds leave a factor of two to five for other CPUs.

In bfloat16 (weights cast, or autocast over float32 weights), root mean square relative to float32: velocities and
foresight 1.2 %, actions sampled in ten steps 0.5 %, losses 0.1 %, the gradient as one vector 2.1 %.
"""

from pathlib import Path

import pytest
import torch
from tests.goldens.golden import Golden, ReleasedMaths, close, load


@pytest.fixture(scope="module")
def golden(goldens: Path) -> Golden:
    return load(goldens / "a1_2b_tiny", ("und", "gen", "act"), ("lang_tokens", "lang_masks", 8))


class TestReleased2B(ReleasedMaths):
    """What both released types share, with this fixture's `golden`."""


@torch.no_grad()
def test_predicted_latents_in_training(golden: Golden) -> None:
    _, latents = golden.model._joint(golden.batch, *golden.noise)
    present = golden.given["img_masks"]
    close(latents[..., ::3, ::3][present], golden.out["train.pred_gen_features_stride3"][present])
    future = golden.model.encode_frames(golden.batch.future.unsqueeze(2)).squeeze(2)[..., ::3, ::3]
    close(future[present], golden.out["train.future_cosmos_latents_stride3"][present])

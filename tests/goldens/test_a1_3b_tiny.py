"""Our 3B model with the released weights computes the released numbers (`a1_3b_tiny/README.txt`, `FACTS.md` §12).

Reached in float32 on a CPU, absolute: latents 1.3e-5, embeddings 7e-6, expert outputs 1.5e-5, velocities and foresight
1.5e-5, sampled actions 6e-6 (of the sample with an absent camera too: `positions="released"`), squared errors 3e-5,
losses 1e-6, pictures 5e-5; gradient norms 2e-6 relative. Positions, patches and mask are exact. The bounds leave a
factor of two to five for other CPUs.

In bfloat16 (weights cast, or autocast over float32 weights), root mean square relative to float32: velocities and
foresight 1.2 %, actions sampled in ten steps 0.5 %, losses 0.1 %, the gradient as one vector 1.7 %.
"""

from pathlib import Path

import pytest
import torch
from tests.goldens.golden import Golden, ReleasedMaths, close, load


@pytest.fixture(scope="module")
def golden(goldens: Path) -> Golden:
    return load(goldens / "a1_3b_tiny", ("prefix", "middle", "suffix"), ("input_ids", "attention_mask", 10))


class TestReleased3B(ReleasedMaths):
    """What both released types share, with this fixture's `golden`."""


@torch.no_grad()
def test_patches(golden: Golden) -> None:
    patches = golden.model.understanding.patchify(golden.given["images"][:, :, 1]).view(2, 3, 16, -1)
    theirs = golden.given["pixel_values"].view(2, 3, 16, -1)
    assert torch.equal(patches[golden.given["img_masks"]], theirs[golden.given["img_masks"]])


@torch.no_grad()
def test_predicted_latents_in_training(golden: Golden) -> None:
    _, latents = golden.model._joint(golden.batch, *golden.noise)
    present = golden.given["img_masks"]
    close(latents[present], golden.out["train.pred_cosmos_features"][present])
    future = golden.model.encode_frames(golden.batch.future.unsqueeze(2)).squeeze(2)
    close(future[present], golden.out["train.future_cosmos_latents"][present])


@torch.no_grad()
def test_predicted_latents_and_pictures_in_sampling(golden: Golden) -> None:
    present, out = golden.given["img_masks"], golden.out
    foresight = golden.model.prefill(golden.observation).foresight
    close(foresight[..., ::3, ::3][present], out["infer.pred_cosmos_features_stride3"][present])
    pictures = golden.model.tokenizer.decode(foresight.flatten(0, 1)).unflatten(0, (2, 3))
    close(pictures[..., ::7, ::7][present], out["infer.recon_images_stride7"][present], 2e-4)
    crop = pictures[0, 0, :, 96:160, 96:160]
    close(crop, out["infer.recon_image_sample0_view0_crop96_160"], 2e-4)


@torch.no_grad()
def test_released_positions_of_a_sample_with_an_absent_camera(golden: Golden) -> None:
    prefix = golden.model.prefill(golden.observation)
    last = golden.out["infer.suffix_position_ids"][0, :, -1]
    assert torch.equal(golden.model.action_positions(prefix.last_position, 1)[0, :, -1], last)

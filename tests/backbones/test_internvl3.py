"""InternVL3's sequence and options; its parity with transformers is in `tests/model/test_stock.py`."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from tests.nn.small import redraw
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor

from vla_mot.backbones.internvl3 import InternVL3Config, InternVL3Expert, VisionConfig, build
from vla_mot.errors import ConfigError

START, END, TEXT = 257, 258, 5
TINY = InternVL3Config(
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    vocab_size=260,
    vision=VisionConfig(depth=2, hidden_size=32, intermediate_size=48, num_heads=4, patch_size=8),
    image_size=(32, 32),
    text_length=TEXT,
    tokenizer="byte",
    pad_token_id=256,
    image_start_token_id=START,
    image_end_token_id=END,
)


@cache
def expert(**changes: object) -> InternVL3Expert:
    ours = InternVL3Expert(replace(TINY, **changes)).eval()
    redraw(ours)
    return ours


def inputs(ours: InternVL3Expert) -> tuple[torch.Tensor, ...]:
    images = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return images, torch.tensor([[True, True], [False, True]]), *ours.tokenize(["go", "a longer text"])


def pixels(images: torch.Tensor) -> torch.Tensor:
    """What the tower sees of `(1, V, 3, H, W)`: InternVL's processor normalizes with ImageNet's mean and deviation."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images[0] - mean[:, None, None]) / std[:, None, None]


@torch.no_grad()
def test_the_sequence_is_start_picture_end_per_view_then_the_instruction() -> None:
    ours = expert()
    images, view_mask, ids, mask = inputs(ours)
    seen = ours(images, view_mask, ids, mask)
    words, vision = ours.embed_tokens.weight, ours.embed_images(images)
    assert vision.shape == (2, 2, 4, 32) and seen.embeddings.shape == (2, 2 * 6 + TEXT, 32)
    for first in (0, 6):
        assert torch.equal(seen.embeddings[:, first], words[START].expand(2, -1))
        assert torch.equal(seen.embeddings[:, first + 1 : first + 5], vision[:, first // 6])
        assert torch.equal(seen.embeddings[:, first + 5], words[END].expand(2, -1))
    assert torch.equal(seen.embeddings[:, 12:], words[ids])
    assert seen.valid.tolist() == [[True] * 14 + [False] * 3, [False] * 6 + [True] * 11]
    assert seen.positions.shape == (1, 2, 17) and seen.deepstack == ()
    assert seen.positions[0, 0].tolist() == [*range(14), 0, 0, 0]
    assert seen.positions[0, 1].tolist() == [0] * 6 + [*range(11)]


@torch.no_grad()
def test_the_released_layout_has_no_edges_and_scales_its_words() -> None:
    ours = expert(image_start_token_id=None, image_end_token_id=None, scale_text=True)
    images, view_mask, ids, mask = inputs(ours)
    seen = ours(images, view_mask, ids, mask)
    assert torch.equal(seen.embeddings[:, :8], ours.embed_images(images).flatten(1, 2))
    assert torch.allclose(seen.embeddings[:, 8:], ours.embed_tokens.weight[ids] * math.sqrt(32))


@torch.no_grad()
def test_a_square_of_patches_is_one_token_and_tokens_are_in_reading_order() -> None:
    ours, dark = expert(), torch.zeros(1, 1, 3, 32, 32)
    bright = dark.clone()
    bright[..., 16:, :16] = 1.0  # the lower left quarter: patches of rows 2, 3 and columns 0, 1
    embed, (base, changed) = ours.vision_tower.embeddings.patch_embeddings, map(pixels, (dark, bright))
    assert (embed(base) != embed(changed)).any(-1)[0].nonzero().flatten().tolist() == [8, 9, 12, 13]
    picked: list[torch.Tensor] = []
    hook = ours.multi_modal_projector.register_forward_pre_hook(lambda _, given: picked.append(given[0]))
    ours.embed_images(bright)
    hook.remove()
    patches = ours.vision_tower(pixel_values=changed).last_hidden_state[0, 1:]
    assert torch.equal(picked[0][0, 2], patches[[8, 9, 12, 13]].flatten())


@pytest.mark.parametrize("arrives", [(32, 32), (48, 48), (24, 40)])
@torch.no_grad()
def test_what_the_tower_sees_equals_the_stock_processor(arrives: tuple[int, int]) -> None:
    ours = expert()
    images = torch.rand(1, 2, 3, *arrives, generator=torch.Generator().manual_seed(2))
    stock = GotOcr2ImageProcessor(
        size={"height": 32, "width": 32},
        do_rescale=False,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    seen: list[torch.Tensor] = []
    hook = ours.vision_tower.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["pixel_values"]), with_kwargs=True
    )
    ours.embed_images(images)
    hook.remove()
    expected = stock(images=list(images[0]), return_tensors="pt").pixel_values
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-5)


def test_the_defaults_are_internvl3_1b() -> None:
    """Parameter counts: `FACTS.md` §1 counts the released layout, which lacks the tower's attention biases."""
    with torch.device("meta"):
        stock, released = (
            InternVL3Expert(InternVL3Config(tokenizer="byte", vision=VisionConfig(attention_bias=bias)))
            for bias in (True, False)
        )
    layers = sum(p.numel() for layer in released.make_layers() for p in layer.parameters())
    own = sum(p.numel() for p in released.parameters())
    assert own + layers + 896 == 938_119_296
    assert sum(p.numel() for p in released.vision_tower.parameters()) == 303_938_560
    assert sum(p.numel() for p in stock.vision_tower.parameters()) - 303_938_560 == 24 * 3 * 1024


def test_the_head_is_stored_but_not_trained_and_absent_when_tied() -> None:
    assert not expert().lm_head.weight.requires_grad
    assert not hasattr(expert(tied=True), "lm_head")
    others = [name for name, p in expert().named_parameters() if not p.requires_grad]
    assert others == ["lm_head.weight"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": [32, 48]}, r"image_size must be a square .* = 16 pixels, got \[32, 48\]"),
        ({"image_size": [40, 40]}, r"multiple of patch / downsample_ratio = 16 pixels"),
        ({"hidden_size": 30}, r"hidden_size 30 must be a multiple of num_heads 4"),
        ({"image_end_token_id": None}, r"must both be ids, or both be null; got 257 and None"),
        ({"downsample_ratio": 0.3}, r"downsample_ratio must be 1, 0.5 or 0.25, got 0.3"),
        ({"image_start_token": 1}, r"unknown key 'backbone.image_start_token'.*image_start_token_id"),
        ({"vision": {"merge_size": 2}}, r"unknown key 'backbone.vision.merge_size'"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict, message: str) -> None:
    options = {"hidden_size": 32, "num_heads": 4, "vision": {"patch_size": 8}, "image_size": [32, 32]}
    options |= {"image_start_token_id": START, "image_end_token_id": END, "tokenizer": "byte"}
    with pytest.raises(ConfigError, match=message):
        build({**options, **changes})

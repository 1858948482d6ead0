"""Parity with transformers' own Qwen3-VL, at tiny size."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests.nn.small import redraw
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig as StockConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel, Qwen3VLVisionModel

from vla_mot.backbones.qwen3_vl import Qwen3VLConfig, Qwen3VLExpert
from vla_mot.backbones.qwen3_vl_vision import VisionConfig
from vla_mot.errors import ConfigError

START, END, IMAGE, PAD = 257, 258, 259, 256
TEXT = 5


@cache
def expert(image_size: tuple[int, int] = (32, 32), patch: int = 8) -> Qwen3VLExpert:
    vision = VisionConfig(
        depth=2,
        hidden_size=32,
        intermediate_size=48,
        num_heads=4,
        patch_size=patch,
        num_position_embeddings=36,  # 6 × 6, so that every grid here is interpolated
        deepstack_layers=(0,),
    )
    config = Qwen3VLConfig(
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        vocab_size=260,
        mrope_sections=(2, 1, 1),
        vision=vision,
        image_size=image_size,
        text_length=TEXT,
        tokenizer="byte",
        pad_token_id=PAD,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    ours = Qwen3VLExpert(config).eval()
    redraw(ours)
    return ours


def pictures(batch: int, views: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(batch, views, 3, height, width, generator=torch.Generator().manual_seed(1))


def processor(minimum: int, patch: int) -> Qwen2VLImageProcessor:
    half = [0.5, 0.5, 0.5]
    return Qwen2VLImageProcessor(
        do_rescale=False,
        image_mean=half,
        image_std=half,
        patch_size=patch,
        merge_size=2,
        size={"shortest_edge": minimum, "longest_edge": 16777216},
    )


@pytest.mark.parametrize(
    ("seen", "arrives", "patch"),
    [((32, 32), (32, 32), 8), ((32, 64), (32, 64), 8), ((256, 256), (224, 224), 16), ((64, 64), (48, 48), 8)],
)
def test_patches_equal_the_stock_processor(seen: tuple, arrives: tuple, patch: int) -> None:
    images = pictures(1, 2, *arrives)
    stock = processor(seen[0] * seen[1], patch)(images=list(images[0]), return_tensors="pt")
    assert stock.image_grid_thw.tolist() == [[1, seen[0] // patch, seen[1] // patch]] * 2
    assert torch.equal(expert(seen, patch).patchify(images).flatten(0, 1), stock.pixel_values)


def test_patches_equal_the_golden_ones_of_the_released_pipeline(goldens: Path) -> None:
    golden = load_file(goldens / "processor" / "processor.safetensors")
    image = golden["qwen.image224"].float()[None, None]
    patches = expert((256, 256), 16).patchify(image)[0]
    assert torch.allclose(patches[::5], golden["qwen.pixel_values_rows_stride5"], atol=1e-6)
    assert torch.allclose(patches.double().sum(1), golden["qwen.pixel_values_rowsum"], atol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (32, 64), (48, 16)])
@torch.no_grad()
def test_picture_embeddings_equal_the_stock_tower(size: tuple[int, int]) -> None:
    ours, images = expert(size), pictures(2, 3, *size)
    tower = Qwen3VLVisionModel(ours.visual.config).eval()
    tower.load_state_dict(ours.visual.state_dict())  # the same names and shapes, none left over
    rows, cols = ours.config.grid
    grid, patches = torch.tensor([[1, rows, cols]] * 6), ours.patchify(images)
    stock = tower(patches.flatten(0, 1), grid_thw=grid)
    assert torch.allclose(ours.embed_images(images).flatten(0, 2), stock.pooler_output, atol=1e-5)
    _, features = ours.visual(patches, deepstack=True)
    assert len(features) == len(stock.deepstack_features) == 1
    assert torch.allclose(features[0].flatten(0, 1), stock.deepstack_features[0], atol=1e-5)


@cache
def stock_model() -> Qwen3VLModel:
    text = {
        "vocab_size": 260,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "head_dim": 8,
        "num_attention_heads": 4,
    }
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 4, "deepstack_visual_indexes": [0]}
    return Qwen3VLModel(StockConfig(text_config=text, vision_config=vision, image_token_id=IMAGE))


def stock_positions(size: tuple[int, int], view_mask: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
    rows, cols = size[0] // 8, size[1] // 8
    per_view = [START] + [IMAGE] * (rows * cols // 4) + [END]
    ids = torch.tensor([per_view * view_mask.shape[1] + [65] * TEXT] * len(view_mask))
    seen = view_mask.repeat_interleave(len(per_view), dim=1)
    attention = torch.cat((seen, token_mask), dim=1).long()
    grid = torch.tensor([[1, rows, cols]] * int(view_mask.sum()))
    positions, _ = stock_model().get_rope_index(
        ids, (ids == IMAGE).int(), image_grid_thw=grid, attention_mask=attention
    )
    return positions


@settings(max_examples=30, deadline=None)
@given(
    size=st.sampled_from([(32, 32), (32, 64), (64, 16)]),
    views=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=3),
    data=st.data(),
)
def test_positions_equal_the_stock_ones_whichever_camera_is_absent(
    size: tuple[int, int], views: list, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(1, TEXT), min_size=len(views), max_size=len(views)))
    view_mask = torch.tensor(views)
    token_mask = torch.arange(TEXT) < torch.tensor(lengths)[:, None]
    expected = stock_positions(size, view_mask, token_mask)
    assert torch.equal(expert(size).positions(view_mask, token_mask), expected)


@torch.no_grad()
def test_the_sequence_is_start_picture_end_per_view_then_the_instruction() -> None:
    ours, images = expert(), pictures(2, 2, 32, 32)
    ids, mask = ours.tokenize(["go", "a longer text"])
    view_mask = torch.tensor([[True, True], [True, False]])
    seen = ours(images, view_mask, ids, mask)
    assert seen.embeddings.shape == (2, 2 * 6 + TEXT, 32) and seen.positions.shape == (3, 2, 17)
    words, vision = ours.embed_tokens.weight, ours.embed_images(images)
    for start in (0, 6):
        assert torch.equal(seen.embeddings[:, start], words[START].expand(2, -1))
        assert torch.equal(seen.embeddings[:, start + 1 : start + 5], vision[:, start // 6])
        assert torch.equal(seen.embeddings[:, start + 5], words[END].expand(2, -1))
    assert torch.equal(seen.embeddings[:, 12:], words[ids])
    assert seen.valid[0].tolist() == [True] * 14 + [False] * 3
    assert seen.valid[1].tolist() == [True] * 6 + [False] * 6 + [True] * 5
    assert torch.equal(seen.positions, ours.positions(view_mask, mask))


def test_layers_are_fresh_and_as_many_as_the_stack_has() -> None:
    ours = expert()
    layers, again = ours.make_layers(), ours.make_layers()
    assert len(layers) == ours.geometry.num_layers == 2
    assert layers[0] is not again[0]


@torch.no_grad()
def test_deepstack_features_stand_at_their_image_tokens() -> None:
    ours = Qwen3VLExpert(replace(expert().config, deepstack=True)).eval()
    redraw(ours)
    images, view_mask = pictures(2, 2, 32, 32), torch.tensor([[True, True], [True, False]])
    ids, mask = ours.tokenize(["go", "a longer text"])
    (added,) = ours(images, view_mask, ids, mask).deepstack
    _, (features,) = ours.visual(ours.patchify(images), deepstack=True)
    assert added.shape == (2, 17, 32)
    for view, first in enumerate((1, 7)):
        assert torch.equal(added[:, first : first + 4], features.unflatten(0, (2, 2))[:, view])
    rest = torch.ones(17, dtype=torch.bool)
    rest[1:5] = rest[7:11] = False
    assert torch.count_nonzero(added[:, rest]) == 0


def test_deepstack_trains_the_features_that_a_later_layer_reads() -> None:
    vision = replace(expert().config.vision, deepstack_layers=(0, 1))

    def trained(deepstack: bool) -> list[bool]:
        ours = Qwen3VLExpert(replace(expert().config, vision=vision, deepstack=deepstack))
        return [next(merger.parameters()).requires_grad for merger in ours.visual.deepstack_merger_list]

    assert trained(deepstack=False) == [False, False]
    assert trained(deepstack=True) == [True, False]  # two text layers: nothing reads what follows the second


@pytest.mark.parametrize("layers", [(), (0, 1, 1), (2,), (-1,), (0, 0)])
def test_deepstack_without_layers_or_with_other_than_there_are_is_refused(layers: tuple) -> None:
    vision = replace(expert().config.vision, deepstack_layers=layers)
    with pytest.raises(ConfigError, match=r"backbone.deepstack needs 1 … 2 \(num_layers\)"):
        replace(expert().config, vision=vision, deepstack=True)

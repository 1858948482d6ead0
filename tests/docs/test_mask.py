"""The picture of the mask is the mask."""

import re

import torch
from tools.draw_mask import BLOCKS, PICTURE, SEGMENTS, draw, layout, mask

from tests.docs.pages import ROOT
from vla_mot.nn.masks import ACTION, build_attn_mask


def test_the_picture_is_what_the_builder_says():
    cells = re.findall(r'id="q(\d+)k(\d+)" class="(may|not)"', PICTURE.read_text())
    drawn = torch.zeros(len(layout()), len(layout()), dtype=torch.bool)
    for query, key, kind in cells:
        drawn[int(query), int(key)] = kind == "may"
    assert len(cells) == drawn.numel()
    assert torch.equal(drawn, build_attn_mask(layout())[0])
    assert PICTURE.read_text() == draw(), "run tools/draw_mask.py"
    assert PICTURE.stat().st_size < 100_000


def test_what_the_page_says_of_it():
    """Later blocks are not seen, what is not real neither sees nor is seen, draws do not see each other."""
    allowed, blocks = mask(), layout().block
    real = torch.tensor([real for _, _, real, count in SEGMENTS for _ in range(count)])
    assert not allowed[~real].any() and not allowed[:, ~real].any()
    assert not allowed[blocks[:, None] < blocks[None, :]].any()
    draws = allowed[blocks == ACTION][:, blocks == ACTION]
    half = len(draws) // 2
    assert draws[:half, :half].all() and not draws[:half, half:].any()
    matrix = re.search(
        r"\(keys\)\n(.*?)\n\(queries\)", (ROOT / "docs" / "concepts.md").read_text(), re.DOTALL
    )
    for query, row in enumerate(matrix[1].splitlines()):
        name, *marks = row.split()
        assert name == BLOCKS[query][0]
        for key, mark in enumerate(marks):
            seen = allowed[(blocks == query) & real][:, (blocks == key) & real]
            assert bool(seen.any()) == (mark == "x"), (query, key)

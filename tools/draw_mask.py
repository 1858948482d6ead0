"""Draws docs/mask.svg, who may attend to whom, from the builder that the model uses.

    python tools/draw_mask.py

A short sequence stands for the real one: a camera that is there and one that is not, an instruction with a padded
place, the generation tokens of both cameras, the state, and a chunk in two noise draws. `tests/docs/test_mask.py`
compares the picture with the builder.
"""

from pathlib import Path

import torch

from vla_mot.nn.masks import ACTION, GENERATION, STATE, UNDERSTANDING, TokenLayout, build_attn_mask

PICTURE = Path(__file__).parents[1] / "docs" / "mask.svg"
# What stands where: (label, block, real, number of tokens).
SEGMENTS = (
    ("head camera", UNDERSTANDING, True, 3),
    ("absent camera", UNDERSTANDING, False, 2),
    ("instruction", UNDERSTANDING, True, 3),
    ("padding", UNDERSTANDING, False, 1),
    ("head: t − m, t", GENERATION, True, 4),
    ("absent camera", GENERATION, False, 2),
    ("state", STATE, True, 1),
    ("actions, draw 1", ACTION, True, 3),
    ("actions, draw 2", ACTION, True, 3),
)
BLOCKS = {
    UNDERSTANDING: ("understanding", "#3f6fb5"),
    GENERATION: ("generation", "#2f9e77"),
    STATE: ("state", "#b8860b"),
    ACTION: ("action", "#c2504a"),
}
DRAWS = 2
CELL, LEFT, TOP, RIGHT = 16, 130, 110, 50  # pixels


def layout() -> TokenLayout:
    """The sequence of `SEGMENTS` as the model lays it out."""
    parts = []
    for block in BLOCKS:
        real = [real for _, of, real, count in SEGMENTS if of == block for _ in range(count)]
        parts.append(TokenLayout.of(block, torch.tensor([real]), groups=DRAWS if block == ACTION else 0))
    return TokenLayout.concat(parts)


def mask() -> torch.Tensor:
    """`(S, S)` bool: row may attend to column."""
    return build_attn_mask(layout())[0]


def draw() -> str:
    """The picture: a filled cell where a query (row) may attend to a key (column), in the key's colour."""
    allowed, blocks = mask(), layout().block.tolist()
    side = CELL * len(blocks)
    width, height = LEFT + side + RIGHT, TOP + side + 50
    shapes = [f'<rect width="{width}" height="{height}" fill="#ffffff"/>']
    for row, seen in enumerate(allowed.tolist()):
        for column, may in enumerate(seen):
            fill = BLOCKS[blocks[column]][1] if may else "#eeeeee"
            shapes.append(
                f'<rect id="q{row}k{column}" class="{"may" if may else "not"}" x="{LEFT + CELL * column + 1}" '
                f'y="{TOP + CELL * row + 1}" width="{CELL - 2}" height="{CELL - 2}" rx="2" fill="{fill}"/>'
            )
    shapes += [*labels(), *borders(blocks, side), *legend(side)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
            "<title>Rows are queries, columns are keys; a filled cell may be attended to.</title>",
            *shapes,
            "</svg>\n",
        ]
    )


def labels() -> list[str]:
    """The segments' names, beside the rows and above the columns."""
    found, start = [], 0
    for name, _, real, count in SEGMENTS:
        middle = CELL * (start + count / 2)
        colour = "#222222" if real else "#999999"
        x, y = LEFT + middle + 4, TOP - 8
        found += [
            f'<text x="{LEFT - 8}" y="{TOP + middle + 4:g}" text-anchor="end" fill="{colour}">{name}</text>',
            f'<text x="{x:g}" y="{y}" fill="{colour}" transform="rotate(-55 {x:g} {y})">{name}</text>',
        ]
        start += count
    return found


def borders(blocks: list[int], side: int) -> list[str]:
    """Lines between blocks."""
    lines = []
    for place in range(1, len(blocks)):
        if blocks[place] != blocks[place - 1]:
            at = CELL * place
            lines += [
                f'<path d="M{LEFT} {TOP + at}h{side}" stroke="#222222"/>',
                f'<path d="M{LEFT + at} {TOP}v{side}" stroke="#222222"/>',
            ]
    return lines


def legend(side: int) -> list[str]:
    """Which colour is which block's."""
    found = []
    for number, (name, colour) in enumerate(BLOCKS.values()):
        x, y = LEFT + 110 * number, TOP + side + 20
        found += [
            f'<rect x="{x}" y="{y}" width="12" height="12" rx="2" fill="{colour}"/>',
            f'<text x="{x + 18}" y="{y + 11}" fill="#222222">{name}</text>',
        ]
    return found


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1000:.0f} kB")

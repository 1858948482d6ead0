import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_mot.nn.masks import ACTION, GENERATION, STATE, UNDERSTANDING, TokenLayout, build_attn_mask


def one(block: int, valid: bool = True, **kwargs) -> TokenLayout:
    return TokenLayout.of(block, torch.tensor([[valid]]), **kwargs)


def drawn(picture: str) -> torch.Tensor:
    return torch.tensor([[cell == "x" for cell in line.split()] for line in picture.strip().splitlines()])


def test_one_token_per_block_is_the_matrix_of_the_docstring() -> None:
    mask = build_attn_mask(TokenLayout.concat([one(UNDERSTANDING), one(GENERATION), one(STATE), one(ACTION)]))
    assert torch.equal(
        mask[0],
        drawn("""
            x . . .
            x x . .
            x x x .
            x x x x
        """),
    )


def test_two_draws_share_a_prefix_and_do_not_see_each_other() -> None:
    actions = TokenLayout.of(ACTION, torch.ones(1, 4, dtype=torch.bool), groups=2)
    assert torch.equal(
        build_attn_mask(TokenLayout.concat([one(UNDERSTANDING), one(STATE), actions]))[0],
        drawn("""
            x . . . . .
            x x . . . .
            x x x x . .
            x x x x . .
            x x . . x x
            x x . . x x
        """),
    )


def test_causal_text_sees_in_order_and_padding_is_masked_as_key_and_query() -> None:
    text = TokenLayout.of(UNDERSTANDING, torch.tensor([[True, True, True, False]]), causal=True)
    generation = TokenLayout.of(GENERATION, torch.tensor([[False, True, True]]))
    assert torch.equal(
        build_attn_mask(TokenLayout.concat([text, generation]))[0],
        drawn("""
            x . . . . . .
            x x . . . . .
            x x x . . . .
            . . . . . . .
            . . . . . . .
            x x x . . x x
            x x x . . x x
        """),
    )


def test_picture_tokens_before_causal_text_of_the_same_block_stay_bidirectional() -> None:
    pictures = TokenLayout.of(UNDERSTANDING, torch.ones(1, 2, dtype=torch.bool))
    text = TokenLayout.of(UNDERSTANDING, torch.ones(1, 2, dtype=torch.bool), causal=True)
    assert torch.equal(
        build_attn_mask(TokenLayout.concat([pictures, text]))[0],
        drawn("""
            x x . .
            x x . .
            x x x .
            x x x x
        """),
    )


def test_tokens_that_do_not_divide_into_the_groups_are_refused() -> None:
    with pytest.raises(AssertionError, match="5 tokens do not divide into 2 groups"):
        TokenLayout.of(ACTION, torch.ones(1, 5, dtype=torch.bool), groups=2)


def naive(layout: TokenLayout, row: int, i: int, j: int) -> bool:
    real = layout.valid[row, i] and layout.valid[row, j]
    earlier = layout.block[j] <= layout.block[i]
    strangers = layout.group[i] != layout.group[j] and layout.group[i] != 0 and layout.group[j] != 0
    ordered = layout.block[i] == layout.block[j] and (layout.causal[i] or layout.causal[j])
    return bool(real and earlier and not strangers and (not ordered or j <= i))


@st.composite
def layouts(draw: st.DrawFn) -> TokenLayout:
    count, rows = draw(st.integers(1, 9)), draw(st.integers(1, 2))

    def column(values: st.SearchStrategy) -> list:
        return draw(st.lists(values, min_size=count, max_size=count))

    return TokenLayout(
        block=torch.tensor(column(st.integers(0, 3))),
        group=torch.tensor(column(st.integers(0, 2))),
        causal=torch.tensor(column(st.booleans())),
        valid=torch.tensor([column(st.booleans()) for _ in range(rows)]),
    )


@settings(max_examples=60, deadline=None)
@given(layout=layouts(), data=st.data())
def test_any_layout_follows_the_definition_and_cached_rows_are_the_tail(
    layout: TokenLayout, data: st.DataObject
) -> None:
    mask, total = build_attn_mask(layout), len(layout)
    for row in range(layout.valid.shape[0]):
        expected = [[naive(layout, row, i, j) for j in range(total)] for i in range(total)]
        assert torch.equal(mask[row], torch.tensor(expected))
    queries = data.draw(st.integers(0, total))
    assert torch.equal(build_attn_mask(layout, num_queries=queries), mask[:, total - queries :])

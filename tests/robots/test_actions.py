import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_mot.robots.actions import to_absolute, to_delta

MASK = (True, False, True)


def test_delta_subtracts_the_state_where_the_mask_says_so():
    actions = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    state = torch.tensor([10.0, 20.0, 30.0, 40.0])
    assert to_delta(actions, state, MASK).tolist() == [[-9.0, 2.0, -27.0], [-6.0, 5.0, -24.0]]


def test_a_state_narrower_than_the_action_serves_its_own_dimensions():
    delta = to_delta(torch.ones(1, 3), torch.tensor([5.0]), (True, False, False))
    assert delta.tolist() == [[-4.0, 1.0, 1.0]]


@given(st.integers(0, 2**32), st.lists(st.booleans(), min_size=1, max_size=6), st.integers(0, 3))
def test_absolute_undoes_delta(seed, mask, extra):
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randn(4, 5, len(mask), generator=generator)
    state = torch.randn(4, len(mask) + extra, generator=generator)
    torch.testing.assert_close(to_absolute(to_delta(actions, state, mask), state, mask), actions)
    untouched = ~torch.tensor(mask)
    assert torch.equal(to_delta(actions, state, mask)[..., untouched], actions[..., untouched])


@pytest.mark.parametrize("convert", [to_delta, to_absolute])
def test_no_delta_dimension_changes_nothing(convert):
    actions = torch.randn(2, 5, 3)
    assert torch.equal(convert(actions, torch.full((2, 3), torch.nan), (False,) * 3), actions)

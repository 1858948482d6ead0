import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_mot.data.split import split_episodes
from vla_mot.errors import ConfigError


@given(st.integers(2, 200), st.floats(0.01, 0.49), st.integers(0, 2**40))
def test_every_episode_is_in_exactly_one_part(episodes, fraction, seed):
    train, validation = split_episodes(episodes, fraction, seed)
    assert sorted(train + validation) == list(range(episodes))
    assert len(validation) == max(1, round(episodes * fraction))


def test_the_split_is_the_same_forever_and_another_for_another_seed():
    assert split_episodes(12, 0.25, seed=7)[1] == (2, 5, 11)
    assert len({split_episodes(100, 0.1, seed)[1] for seed in range(5)}) == 5


def test_without_validation_all_episodes_train():
    assert split_episodes(3, 0.0) == ((0, 1, 2), ())


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_a_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(ConfigError, match=r"must lie in \[0, 1\)"):
        split_episodes(10, fraction)


def test_at_least_one_episode_must_remain_to_train():
    with pytest.raises(ConfigError, match="1 episodes cannot be split"):
        split_episodes(1, 0.1)

import math

import torch

from vla_mot.keyed import keyed_normal, keyed_uniform

ROWS = torch.arange(8)


def test_every_coordinate_of_the_key_matters() -> None:
    base = keyed_normal(1, 2, 3, ROWS, (4, 5))
    assert base.shape == (8, 4, 5) and base.dtype == torch.float32
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3), (1, 3, 2)):
        assert not torch.isclose(base, keyed_normal(*other, ROWS, (4, 5)), atol=1e-6).any()
    assert not torch.isclose(base[0], base[1], atol=1e-6).any()
    assert torch.equal(base, keyed_normal(1, 2, 3, ROWS, (4, 5)))


def test_noise_does_not_depend_on_who_else_is_in_the_batch() -> None:
    whole = keyed_normal(1, 2, 3, ROWS, (4, 5))
    order = torch.tensor([5, 0, 7, 3])
    assert torch.equal(keyed_normal(1, 2, 3, order, (4, 5)), whole[order])
    halves = [keyed_normal(1, 2, 3, ROWS[part::2], (4, 5)) for part in (0, 1)]
    assert torch.equal(torch.stack(halves, dim=1).flatten(0, 1), whole)


def test_more_draws_keep_the_earlier_ones() -> None:
    assert torch.equal(keyed_normal(1, 2, 3, ROWS, (2, 5)), keyed_normal(1, 2, 3, ROWS, (6, 5))[:, :2])


def test_normal_numbers_have_the_moments_and_no_correlation() -> None:
    x = keyed_normal(0, 0, 0, torch.arange(2000), (200,)).double()  # 400,000 numbers
    count = x.numel()
    assert abs(float(x.mean())) < 5 / math.sqrt(count)
    assert abs(float(x.var()) - 1) < 5 * math.sqrt(2 / count)
    assert abs(float((x**3).mean())) < 5 * math.sqrt(15 / count)
    assert abs(float((x**4).mean()) - 3) < 5 * math.sqrt(96 / count)
    within = float((x.abs() < 1).double().mean())
    assert abs(within - math.erf(1 / math.sqrt(2))) < 5 * math.sqrt(0.22 / count)
    for a, b in ((x[:, 1:], x[:, :-1]), (x[1:], x[:-1]), (x[:, 100:], x[:, :100])):
        assert abs(float((a * b).mean())) < 5 / math.sqrt(b.numel())


def test_neighbouring_keys_are_uncorrelated_and_never_collide() -> None:
    keys = [(seed, step, stream) for seed in range(3) for step in range(3) for stream in range(3)]
    rows = torch.stack([keyed_uniform(*key, torch.arange(100), 100).flatten() for key in keys])
    assert rows.unique().numel() == rows.numel()  # 270,000 numbers of 53 bits
    correlation = torch.corrcoef(rows) - torch.eye(len(keys))
    assert correlation.abs().max() < 5.5 / math.sqrt(rows.shape[1])


def test_uniform_numbers_fill_the_half_open_interval() -> None:
    x = keyed_uniform(7, 0, 0, torch.arange(1000), 100)
    assert x.dtype == torch.float64 and x.min() > 0 and x.max() <= 1
    filled = torch.histc(x.flatten(), bins=50, min=0, max=1)
    assert (filled - 2000).abs().max() < 5 * math.sqrt(2000)


def test_large_and_negative_indices_are_keys_like_any_other() -> None:
    far = torch.tensor([2**40, 2**40 + 1, 396_000_000, -1])
    assert keyed_uniform(0, 700_000, 1, far, 50).unique().numel() == 200

"""A map as several products: the same numbers, in the same places."""

import pytest
import torch
from torch.nn import functional as F

from vla_mot.nn.projection import Projection, side_by_side


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def products_of(run) -> list[tuple[int, ...]]:
    """Shapes of the second factors of the batched products that it asks for."""
    with torch.profiler.profile(record_shapes=True) as profile:
        run()
    places = {"aten::bmm": 1, "aten::baddbmm": 2}
    events = [event for event in profile.events() if event.name in places]
    return [tuple(event.input_shapes[places[event.name]]) for event in events]


@torch.no_grad()
@pytest.mark.parametrize(
    ("columns", "products", "shapes"),
    [
        (256, 1, []),
        (256, 2, [(2, 32, 128)]),
        (192, 3, [(3, 32, 64)]),
        (320, 4, [(4, 32, 80)]),
        (256, 3, []),  # they do not divide
        (130, 2, [(2, 32, 65)]),
        (126, 2, []),  # too narrow
    ],
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_products_side_by_side_are_one_map(columns, products, shapes, with_bias):
    x, weight, bias = drawn(2, 10, 32), drawn(columns, 32), drawn(columns) if with_bias else None
    projection = Projection(weight, bias, products)
    torch.testing.assert_close(projection(x), F.linear(x, weight, bias))
    assert products_of(lambda: projection(x)) == shapes


@torch.no_grad()
def test_a_few_rows_are_one_product():
    assert products_of(lambda: Projection(drawn(256, 32), None, 2)(drawn(1, 15, 32))) == []
    assert len(products_of(lambda: Projection(drawn(256, 32), None, 2)(drawn(1, 16, 32)))) == 1


@torch.no_grad()
def test_what_follows_the_first_columns():
    x, weight, bias = drawn(2, 10, 32), drawn(256, 32), drawn(256)
    rest = Projection(weight, bias, 2).behind(128)
    torch.testing.assert_close(rest(x), F.linear(x, weight, bias)[..., 128:])
    assert rest.weight.data_ptr() == weight[128:].data_ptr()
    assert rest.products == 2


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="no MKL: never cut")
def test_only_float32_on_a_cpu_is_cut():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert side_by_side(torch.empty(1)) == 2
        assert side_by_side(torch.empty(1, dtype=torch.bfloat16)) == 1
        assert side_by_side(torch.empty(1, device="meta")) == 1
    finally:
        torch.set_num_threads(threads)

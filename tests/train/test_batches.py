"""The rule of batches: what divides is divided, and no other batch is trained than the experiment's."""

import re

import pytest

from vla_mot.errors import ConfigError
from vla_mot.train.batches import Batches


@pytest.mark.parametrize(
    ("asked", "micro_batch", "accumulate"),
    [
        ((32, 1, None, None), 32, 1),
        ((32, 2, None, None), 16, 1),
        ((32, 2, 4, None), 4, 4),
        ((32, 2, None, 4), 4, 4),
        ((32, 2, 8, 2), 8, 2),
        ((512, 64, 1, None), 1, 8),
    ],
)
def test_a_batch_is_divided(asked: tuple, micro_batch: int, accumulate: int) -> None:
    batches = Batches.of(*asked)
    assert (batches.micro_batch, batches.accumulate) == (micro_batch, accumulate)
    assert batches.share == asked[0] // asked[1]
    assert batches.batch_size == asked[0]


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ((32, 3, None, None), r"batch of 32 does not divide among 3 ranks; .*=30 or train.batch_size=33"),
        ((32, 2, 5, None), r"micro_batch=5 .* 16 samples .* fitting: \S+=4 or \S+=8\. .*=30 or \S+=40"),
        ((32, 1, 64, None), r"fitting: train.parallel.micro_batch=32\. .*: train.batch_size=64"),
        ((32, 2, None, 3), r"accumulate=3 .* fitting: train.parallel.accumulate=2 or \S+=4"),
        (
            (512, 8, 8, 4),
            r"differs .* = 256 .* is 512.* keep .* with \S+accumulate=8; .*: train.batch_size=256",
        ),
        ((512, 8, 7, 4), r"no number of passes of 56 samples makes 512: .*: train.batch_size=224"),
    ],
)
def test_another_batch_is_refused(asked: tuple, wanted: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Batches.of(*asked)
    assert re.search(wanted, str(refused.value)), refused.value


def test_what_the_messages_propose_fits() -> None:
    for asked in ((32, 3, None, None), (30, 2, 4, None), (512, 8, 8, 4), (512, 8, 7, 4), (32, 2, None, 3)):
        with pytest.raises(ConfigError) as refused:
            Batches.of(*asked)
        sizes = re.findall(r"train\.batch_size=(\d+)", str(refused.value))
        assert sizes
        for size in sizes:
            assert Batches.of(int(size), *asked[1:]).batch_size == int(size)

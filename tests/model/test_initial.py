"""How new generation and action experts begin, as docs/released.md states it."""

import pytest
import torch
from tests.model.tiny import FAMILIES, tiny_config

from vla_mot.model.model import VlaMotModel


@pytest.mark.parametrize("family", FAMILIES)
def test_projections_back_into_the_stream_begin_smaller_and_all_others_as_torch_begins_them(
    family: str,
) -> None:
    torch.manual_seed(0)
    model = VlaMotModel(tiny_config(family))
    shrunk = (2 * len(model.stack.layers)) ** -0.5
    weights = dict(model.stack.named_parameters())
    found = {
        name: w for name, w in weights.items() if "experts.generation" in name or "experts.action" in name
    }
    assert len([name for name in found if name.endswith(("o_proj.weight", "down_proj.weight"))]) == 8
    for name, weight in found.items():
        if "norm" in name:
            assert torch.equal(weight, torch.ones_like(weight)), name
            continue
        matrix = weights[name.replace("bias", "weight")]
        bound = matrix.shape[1] ** -0.5 * (shrunk if "o_proj" in name or "down_proj" in name else 1)
        assert 0.8 * bound < weight.abs().max() <= bound, name

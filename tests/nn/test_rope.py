import pytest
import torch
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextRotaryEmbedding,
    apply_rotary_pos_emb,
)

from vla_mot.nn.rope import RopeConfig, rotate, rotation


@pytest.mark.parametrize(
    ("head_dim", "sections", "base"), [(128, (24, 20, 20), 5e6), (16, (4, 2, 2), 5e6), (8, (2, 1, 1), 100.0)]
)
def test_rotation_equals_qwen3_vl_on_three_axes(head_dim: int, sections: tuple, base: float) -> None:
    parameters = {"rope_type": "default", "rope_theta": base, "mrope_section": list(sections)}
    config = Qwen3VLTextConfig(
        hidden_size=4 * head_dim, num_attention_heads=4, head_dim=head_dim, rope_parameters=parameters
    )
    positions = torch.randint(0, 400, (3, 2, 11), generator=torch.Generator().manual_seed(0))
    cos, sin = Qwen3VLTextRotaryEmbedding(config)(torch.zeros(1), positions)
    ours = rotation(positions, head_dim, RopeConfig(base, sections))
    # A position divided by a power, or multiplied by its inverse: one rounding of an angle up to 400.
    assert torch.allclose(ours.cos, cos, atol=5e-5) and torch.allclose(ours.sin, sin, atol=5e-5)
    query = torch.randn(2, 11, 4, head_dim, generator=torch.Generator().manual_seed(1))
    theirs, _ = apply_rotary_pos_emb(query, query, cos, sin, unsqueeze_dim=2)
    assert torch.allclose(rotate(query, ours), theirs, atol=2e-4)


def test_rotation_equals_qwen2_on_one_axis() -> None:
    config = Qwen2Config(
        hidden_size=64, num_attention_heads=4, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    )
    positions = torch.randint(0, 400, (1, 2, 11), generator=torch.Generator().manual_seed(0))
    cos, sin = Qwen2RotaryEmbedding(config)(torch.zeros(1), positions[0])
    ours = rotation(positions, 16, RopeConfig(1e4))
    assert torch.allclose(ours.cos, cos, atol=5e-5) and torch.allclose(ours.sin, sin, atol=5e-5)


def test_a_slice_of_a_rotation_is_the_rotation_of_the_slice() -> None:
    positions = torch.arange(9).expand(3, 2, 9)
    whole, config = rotation(positions, 8, RopeConfig(100.0, (2, 1, 1))), RopeConfig(100.0, (2, 1, 1))
    part = rotation(positions[:, :, 3:7], 8, config)
    assert torch.equal(whole[3:7].cos, part.cos) and torch.equal(whole[3:7].sin, part.sin)


def test_attention_sees_only_differences_of_positions() -> None:
    config, generator = RopeConfig(100.0, (2, 1, 1)), torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 8, generator=generator)
    here = torch.tensor([3, 5, 2]).view(3, 1, 1)
    there = torch.tensor([1, 9, 4]).view(3, 1, 1)

    def score(shift: int) -> torch.Tensor:
        q, k = (rotate(x, rotation(at + shift, 8, config)) for x, at in ((query, here), (key, there)))
        return (q * k).sum()

    assert torch.allclose(score(0), score(17), atol=1e-5)
    assert not torch.allclose(score(0), (query * key).sum(), atol=1e-2)

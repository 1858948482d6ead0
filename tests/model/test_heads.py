"""What an engine computes in another way than the model's own layers do: the same numbers but for rounding."""

import pytest
import torch

from vla_mot.model.heads import GenerationHead


def head_of(stride: int, history: str = "past") -> GenerationHead:
    torch.manual_seed(3)
    return GenerationHead(16, (4, 8), stride, 32, history).requires_grad_(False)


@pytest.mark.parametrize("history", ["past", "present"])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_latents_become_tokens_by_one_map(stride: int, history: str) -> None:
    head, latents = head_of(stride, history), torch.randn(2, 3, 2, 16, 4, 8)
    patch_map = head.patch_map()
    assert patch_map.weight.shape == (32, 16 * stride**2) and patch_map.bias.shape == (32,)
    expected = head.embed(latents)
    assert expected.shape == (2, 3 * head.tokens_per_view, 32)
    assert torch.allclose(head.embed_by_map(latents, patch_map), expected, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_outputs_become_latents_by_one_map(stride: int) -> None:
    head = head_of(stride)
    outputs = torch.randn(2, 3 * head.tokens_per_view, 32)
    expected = head.predict(outputs)
    assert expected.shape == (2, 3, 16, 4, 8)
    assert torch.allclose(head.predict_by_map(outputs, head.cell_map()), expected, atol=1e-5)


def test_the_map_is_no_worse_in_bfloat16_than_the_layers() -> None:
    narrow = head_of(2).to(torch.bfloat16)
    latents = torch.randn(4, 3, 2, 16, 4, 8).bfloat16().float()
    wanted = head_of(2).to(torch.bfloat16).float().embed(latents)
    by_map = narrow.embed_by_map(latents, narrow.patch_map())
    assert by_map.dtype == torch.bfloat16
    assert (by_map - wanted).abs().mean() < 1.2 * (narrow.embed(latents) - wanted).abs().mean()

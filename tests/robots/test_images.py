import hashlib

import pytest
import torch
from safetensors.torch import load_file

from vla_mot.robots.images import resize_with_pad, to_bytes, to_unit


@pytest.mark.parametrize("case", ["pad0", "pad1", "pad2"])
def test_resizing_equals_the_reference(goldens, case):
    golden = load_file(goldens / "processor" / "processor.safetensors")
    resized = resize_with_pad(golden[f"{case}.image"].float(), 224, 224)
    torch.testing.assert_close(
        resized[..., ::3, ::3], golden[f"{case}.resized224_stride3"], atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("case", ["pad0", "pad1", "pad2"])
def test_bytes_resize_as_floats_to_half_a_level(goldens, case):
    image = load_file(goldens / "processor" / "processor.safetensors")[f"{case}.image"].float()
    levels = (image * 255).round()
    as_bytes = resize_with_pad(levels.to(torch.uint8), 224, 224)
    as_floats = resize_with_pad(levels / 255, 224, 224) * 255
    assert as_bytes.dtype == torch.uint8
    assert (as_bytes.float() - as_floats).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize(("shape", "bars"), [((10, 20), "rows"), ((20, 10), "columns")])
def test_the_picture_is_centred_on_zeros(shape, bars):
    padded = resize_with_pad(torch.ones(3, *shape), 40, 40)
    line = padded[0, :, 20] if bars == "rows" else padded[0, 20]
    assert line.tolist() == [0.0] * 10 + [1.0] * 20 + [0.0] * 10


def test_a_picture_of_the_right_size_is_not_touched():
    image = torch.randint(0, 256, (2, 3, 3, 8, 9), dtype=torch.uint8)
    assert resize_with_pad(image, 8, 9) is image


def test_leading_axes_are_kept():
    assert resize_with_pad(torch.zeros(2, 4, 3, 10, 20), 16, 16).shape == (2, 4, 3, 16, 16)


def test_bytes_become_fractions_and_floats_stay():
    assert to_unit(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0.0, 1.0]
    assert to_unit(torch.tensor([0.25])).tolist() == [0.25]
    assert to_unit(torch.tensor([0.25], dtype=torch.bfloat16)).dtype == torch.float32


def test_every_level_survives_the_way_there_and_back():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_unit(levels)), levels)
    assert to_bytes(torch.tensor([-0.1, 1.1])).tolist() == [0, 255], "a little outside is no overflow"


def test_the_bytes_of_a_frame_cache_stay_what_they_were():
    """Twice and half the size, where bilinear shares are quarters and halves: exact, whatever the CPU adds first."""
    random = torch.Generator().manual_seed(7)
    frames = torch.randint(0, 256, (2, 3, 16, 24), generator=random, dtype=torch.uint8)
    digests = [
        hashlib.sha256(resize_with_pad(frames, *size).numpy().tobytes()).hexdigest()[:16]
        for size in ((32, 48), (8, 12), (40, 48))
    ]
    assert digests == ["3141b4f3389e3ce8", "bd87af2b0a09dad7", "3cb58f3d899976e4"]

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from vla_mot.errors import ConfigError
from vla_mot.robots.augmentation import AugmentationConfig, _colour_maps, _crop, augment

ALL = AugmentationConfig(brightness=0.3, contrast=0.4, saturation=0.5, hue=0.05, crop=0.9)
INDEX = torch.tensor([5, 0, 2**40, 7, 396_000_000, 3])


def random(batch: int = 6, size: tuple[int, int] = (12, 16), views: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, views, 3, *size), dtype=torch.uint8, generator=generator)


def flat(*colour: int, batch: int = 400, views: int = 1) -> Tensor:
    """Pictures of one colour, small."""
    levels = torch.tensor(colour, dtype=torch.uint8)
    return levels[:, None, None].expand(batch, 3, views, 3, 2, 2).contiguous()


def pixel(images: Tensor) -> Tensor:
    """`(B, 3)` colours of the first pixel of the first frame and view, in [0, 1]."""
    return images[:, 0, 0, :, 0, 0].double() / 255


@pytest.mark.parametrize("config", [AugmentationConfig(), replace(ALL, probability=0.0)])
def test_off_is_the_identity(config):
    images = random()
    assert augment(images, config, 0, INDEX) is images


def test_bytes_of_the_same_shape_come_back_and_the_input_stays():
    images = random(size=(12, 16))
    before = images.clone()
    changed = augment(images, ALL, 0, INDEX)
    assert changed.dtype == torch.uint8 and changed.shape == images.shape
    assert torch.equal(images, before)
    assert (changed != images).flatten(3).any(-1).all(), "every picture is another one"


def test_the_three_frames_of_a_sample_change_alike():
    still = random()[:, :1].expand(-1, 3, -1, -1, -1, -1)
    changed = augment(still, ALL, 0, INDEX)
    assert torch.equal(changed[:, 0], changed[:, 1]) and torch.equal(changed[:, 0], changed[:, 2])


def test_samples_and_cameras_change_each_in_their_own_way():
    same = random(batch=1)[:, :, :1].expand(6, -1, 2, -1, -1, -1)
    pictures = augment(same, ALL, 0, INDEX)[:, 0].flatten(0, 1).flatten(1)
    assert len(pictures.unique(dim=0)) == 12


@pytest.mark.parametrize("config", [ALL, replace(ALL, probability=0.5)])
def test_it_does_not_matter_who_else_is_in_the_batch(config):
    images = random()
    whole = augment(images, config, 0, INDEX)
    order = torch.tensor([4, 1, 0, 5])
    assert torch.equal(augment(images[order], config, 0, INDEX[order]), whole[order])
    for row in range(6):
        assert torch.equal(augment(images[row : row + 1], config, 0, INDEX[row : row + 1])[0], whole[row])


def test_a_camera_changes_alike_whether_or_not_there_are_others():
    images = random(views=3)
    assert torch.equal(augment(images, ALL, 0, INDEX)[:, :, :1], augment(images[:, :, :1], ALL, 0, INDEX))


def test_seed_and_index_are_the_key():
    images = random()
    assert torch.equal(augment(images, ALL, 4, INDEX), augment(images, ALL, 4, INDEX))
    assert not torch.equal(augment(images, ALL, 4, INDEX), augment(images, ALL, 5, INDEX))
    assert not torch.equal(augment(images, ALL, 4, INDEX), augment(images, ALL, 4, INDEX + 1))


def test_a_probability_spares_the_rest_bit_by_bit():
    images = flat(90, 120, 60, batch=1000, views=2)
    changed = augment(images, AugmentationConfig(brightness=0.5, probability=0.3), 0, torch.arange(1000))
    touched = (changed != images).flatten(3).any(-1)
    assert touched.any(1).eq(touched.all(1)).all(), "all frames of a (sample, camera), or none"
    assert (
        abs(touched[:, 0].double().mean() - 0.3) < 5 * (0.21 / 2000) ** 0.5 + 0.01
    )  # some factors are nearly 1


def test_brightness_scales_and_fills_its_range():
    grey = pixel(augment(flat(100, 100, 100), AugmentationConfig(brightness=0.3), 0, torch.arange(400)))
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 0], grey[:, 2])
    factors = grey[:, 0] * 255 / 100
    assert 0.695 <= factors.min() < 0.72 and 1.28 < factors.max() <= 1.305
    assert abs(factors.mean() - 1) < 5 * 0.3 / (3 * 400) ** 0.5
    black = augment(
        flat(0, 0, 0), AugmentationConfig(brightness=0.3, saturation=0.9, hue=0.5), 0, torch.arange(400)
    )
    assert black.max() == 0, "the bars beside a padded picture stay black"


def test_contrast_turns_around_mid_grey():
    config = AugmentationConfig(contrast=0.4)
    dark = pixel(augment(flat(55, 55, 55), config, 0, torch.arange(400)))
    light = pixel(augment(flat(200, 200, 200), config, 0, torch.arange(400)))
    torch.testing.assert_close(dark + light, torch.ones_like(dark), atol=1.01 / 255, rtol=0)
    assert dark.min() < 0.11 < 0.3 < dark.max()


def test_saturation_and_hue_keep_the_luminance():
    luminance = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    images = flat(120, 128, 140)
    for config in (AugmentationConfig(saturation=0.8), AugmentationConfig(hue=0.5)):
        colours = pixel(augment(images, config, 0, torch.arange(400)))
        assert len(colours.unique(dim=0)) > 20
        torch.testing.assert_close(colours @ luminance, pixel(images) @ luminance, atol=0.6 / 255, rtol=0)


def test_hue_turns_both_ways_and_no_further_than_asked():
    """At most a 20th of the circle: red becomes a little orange or a little pink, and stays the strongest channel."""
    red = pixel(augment(flat(200, 60, 60), AugmentationConfig(hue=0.05), 0, torch.arange(400)))
    assert (red[:, 0] > red[:, 1:].amax(1)).all()
    assert (red[:, 1] > red[:, 2] + 0.1).any() and (red[:, 2] > red[:, 1] + 0.1).any()


def test_grey_has_no_hue_and_no_saturation():
    images = flat(77, 77, 77)
    assert torch.equal(
        augment(images, AugmentationConfig(saturation=0.9, hue=0.5), 0, torch.arange(400)), images
    )


def test_the_colour_map_is_the_composition_of_its_parts():
    """Saturation and hue first, then brightness, then contrast around one half."""
    drawn = torch.tensor([[0.9, 0.2, 0.7, 0.6]], dtype=torch.float64)
    alone = []
    for part, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        values = {field.name: 0.0 for field in fields(ALL)[:4]} | {name: getattr(ALL, name)}
        alone.append(_colour_maps(AugmentationConfig(**values), drawn))
        assert (alone[part][1] == 0).all() == (name != "contrast")
    matrix, offset = _colour_maps(ALL, drawn)
    rgb = torch.tensor([0.2, 0.7, 0.4])
    expected = rgb
    for part in (3, 2, 0, 1):
        expected = alone[part][0][0] @ expected + alone[part][1][0]
    torch.testing.assert_close(matrix[0] @ rgb + offset[0], expected, atol=1e-6, rtol=0)


def ramps(height: int, width: int, batch: int) -> Tensor:
    """Pictures whose first channel grows to the right and whose second grows downwards, by 4 levels a pixel."""
    x = torch.arange(width).mul(4).expand(height, width)
    y = torch.arange(height).mul(4)[:, None].expand(height, width)
    return torch.stack([x, y, 0 * x]).to(torch.uint8).expand(batch, 3, 1, 3, height, width)


def test_a_crop_is_a_window_inside_the_picture_scaled_back():
    height, width, side = 40, 60, 0.75
    found = augment(ramps(height, width, 300), AugmentationConfig(crop=side), 0, torch.arange(300))
    x, y = found[:, 0, 0, 0].double() / 4, found[:, 0, 0, 1].double() / 4
    inner = slice(2, -2)  # the outermost pixels repeat the edge where the window touches it
    for line, axis, length in ((x[:, 5], "x", width), (y[:, :, 5], "y", height)):
        steps = (line[:, inner][:, -1] - line[:, inner][:, 0]) / (length - 5)
        torch.testing.assert_close(steps, torch.full_like(steps, side), atol=0.02, rtol=0)
        corner = line[:, length // 2] + 0.5 - side * (length // 2 + 0.5)
        free = (1 - side) * length
        assert -0.3 <= corner.min() < 0.1 * free and 0.9 * free < corner.max() <= free + 0.3, axis
    assert abs(torch.corrcoef(torch.stack([x[:, 5, 30], y[:, 20, 5]]))[0, 1]) < 0.2, "two separate draws"


def test_the_middle_window_equals_plain_resizing():
    """A window of half the side in the middle of a ramp, by hand: pixel i shows 10 + 0.5·(i + 0.5) − 0.5."""
    picture = torch.arange(40.0).expand(1, 1, 3, 40, 40)
    found = _crop(picture, 0.5, torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(found[0, 0, 0, 0], 10 + 0.5 * (torch.arange(40) + 0.5) - 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"brightness": -0.1}, r"augmentation.brightness must lie in \[0, 1\], got -0.1"),
        ({"hue": 0.6}, r"augmentation.hue must lie in \[0, 0.5\], got 0.6"),
        ({"crop": 0.0}, r"augmentation.crop must lie in \(0, 1\], got 0.0"),
        ({"probability": float("nan")}, r"augmentation.probability must lie in \[0, 1\], got nan"),
    ],
)
def test_ranges_are_checked(change, message):
    with pytest.raises(ConfigError, match=message):
        AugmentationConfig(**change)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_a_gpu_changes_pictures_as_a_cpu_does():
    images = random()
    there = augment(images.cuda(), ALL, 0, INDEX.cuda())
    assert there.is_cuda
    assert (there.cpu().int() - augment(images, ALL, 0, INDEX).int()).abs().max() <= 1

from dataclasses import replace

import pytest
import torch

from vla_mot.errors import ConfigError
from vla_mot.robots.embodiment import Embodiment, Field
from vla_mot.robots.images import resize_with_pad
from vla_mot.robots.normalization import Statistics, summarize
from vla_mot.robots.processor import Processor
from vla_mot.robots.robot import Robot

TOY = Embodiment(
    name="toy",
    fps=10,
    state=(Field("observation.state", ("x", "y"), ("m", "m")),),
    action=(Field("action", ("x", "gripper"), ("m", "m"), (True, False)),),
    cameras=("head", None, "hand"),
)


def tokenize(instructions):
    mask = torch.ones(len(instructions), 4, dtype=torch.bool)
    return mask.long(), mask


@pytest.fixture(params=["delta", "abs"])
def processor(request):
    features = [summarize([3 + 2 * torch.randn(50, 2)]) for _ in range(2)]
    statistics = Statistics("toy", request.param, 5, *features)
    return Processor(Robot(TOY, statistics), tokenize, image_size=(16, 24), state_width=4, action_width=3)


def test_an_observation_in_the_models_terms(processor):
    images = {slot: torch.full((2, 2, 3, 8, 12), slot, dtype=torch.uint8) for slot in (0, 2)}
    seen = processor.observation(images, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), ["a", "b"])
    assert seen.images.shape == (2, 3, 2, 3, 16, 24)
    levels = [(seen.images[0, slot] * 255).unique().tolist() for slot in range(3)]
    assert levels == [[0], [255], [pytest.approx(2)]]
    assert seen.view_mask.tolist() == [[True, False, True]] * 2
    assert seen.state.shape == (2, 4)
    assert not seen.state[:, 2:].any()
    torch.testing.assert_close(
        processor.statistics.state.unnormalize(seen.state[:, :2]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    )


def test_slots_behind_the_last_camera_are_trimmed(processor):
    seen = processor.observation({0: torch.zeros(1, 2, 3, 16, 24)}, torch.zeros(1, 2), ["a"])
    assert seen.images.shape[1] == 1


def test_actions_survive_the_way_to_the_model_and_back(processor):
    actions, state = torch.randn(4, 5, 2), torch.randn(4, 2)
    padded = processor.actions(actions, state)
    assert padded.shape == (4, 5, 3)
    torch.testing.assert_close(processor.physical(padded, state), actions, atol=1e-5, rtol=1e-5)


def test_delta_statistics_subtract_the_state_first(processor):
    chunk = processor.actions(torch.full((1, 1, 2), 7.0), torch.tensor([[2.0, 3.0]]))[0, 0, :2]
    raw = (
        torch.tensor([5.0, 7.0]) if processor.statistics.action_mode == "delta" else torch.tensor([7.0, 7.0])
    )
    torch.testing.assert_close(chunk, processor.statistics.action.normalize(raw))


def test_what_does_not_fit_is_refused(processor):
    with pytest.raises(ConfigError, match="no camera image"):
        processor.observation({}, torch.zeros(1, 2), ["a"])
    with pytest.raises(ConfigError, match="state has 3 dimensions, embodiment 'toy' expects 2"):
        processor.state(torch.zeros(1, 3))
    with pytest.raises(ConfigError, match="statistics are for embodiment 'toy', but 'other' is wanted"):
        Robot(replace(TOY, name="other"), processor.statistics)


def test_a_model_that_counts_absent_cameras_gets_all_slots(processor):
    images = {0: torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8)}
    seen = replace(processor, slots=3).observation(images, torch.zeros(1, 2), ["a"])
    assert seen.view_mask.tolist() == [[True, False, False]]
    assert bool((seen.images[:, 1:] == 1).all())


def test_bytes_of_the_models_size_stay_the_bytes_they_are(processor):
    """What was trained and measured on such pictures depends on it to the last bit."""
    images = {slot: torch.randint(0, 256, (2, 2, 3, 16, 24), dtype=torch.uint8) for slot in (0, 2)}
    seen = processor.observation(images, torch.zeros(2, 2), ["a", "b"]).images
    assert seen.dtype == torch.uint8
    assert torch.equal(seen[:, 0], images[0]) and torch.equal(seen[:, 2], images[2])


@pytest.mark.parametrize("size", [(48, 64), (10, 12), (16, 20)])
def test_bytes_and_floats_of_another_size_give_the_same_numbers(processor, size):
    levels = {slot: torch.randint(0, 256, (2, 2, 3, *size), dtype=torch.uint8) for slot in (0, 2)}
    floats = {slot: view.float() / 255 for slot, view in levels.items()}
    state = torch.zeros(2, 2)
    ours = processor.observation(levels, state, ["a", "b"]).images
    theirs = processor.observation(floats, state, ["a", "b"]).images
    assert ours.dtype == theirs.dtype == torch.float32 and torch.equal(ours, theirs)
    assert torch.equal(ours[:, 0], resize_with_pad(floats[0], 16, 24))
    assert bool((ours[:, 1] == 1).all()), "an absent camera is white"


def test_cameras_of_several_kinds_share_one_scale(processor):
    """One camera has the model's size, another has not, a third gives floats."""
    right = torch.full((1, 2, 3, 16, 24), 255, dtype=torch.uint8)
    images = {0: right, 1: torch.full((1, 2, 3, 32, 48), 51, dtype=torch.uint8), 2: right.float() / 510}
    seen = processor.observation(images, torch.zeros(1, 2), ["a"]).images
    assert [round(float(view.mean()), 4) for view in seen[0]] == [1.0, 0.2, 0.5]

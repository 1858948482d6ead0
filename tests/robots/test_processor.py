from dataclasses import replace

import pytest
import torch

from vla_mot.errors import ConfigError
from vla_mot.robots.embodiment import Embodiment, Field
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
    assert [seen.images[0, slot].unique().tolist() for slot in range(3)] == [[0], [255], [2]]
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
    assert bool((seen.images[:, 1:] == 255).all())

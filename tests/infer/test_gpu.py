"""The engine on CUDA: recorded graphs equal the model, and the host waits for nothing after the first calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from tests.infer.tiny_policy import frames, states, tiny_policy
from tests.model.tiny import tiny_batch, tiny_model, tiny_noise
from vla_mot.batch import Observation
from vla_mot.infer.engine import Engine, EngineConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

LARGEST = 1e-3  # of float32 on tensor cores that may round to TF32


def on_cuda(observation: Observation) -> Observation:
    """Pictures and state on the device, masks and words on the host."""
    return replace(observation, images=observation.images.cuda(), state=observation.state.cuda())


def assert_same(engine: Engine, observation: Observation, **options) -> None:
    """Of every robot and every number, the first time and again."""
    noise = tiny_noise(tiny_batch())[0][: observation.batch_size, 0].cuda()
    expected, foreseen = engine.model.sample(observation.to("cuda"), noise, 3, 3, **options)
    for _ in range(2):
        actions, foresight = engine.sample(on_cuda(observation), noise, 3, 3, **options)
        assert (actions - expected).abs().max() < LARGEST
        if foresight is not None:
            seen = observation.view_mask.cuda()
            assert (foresight[seen] - foreseen[seen]).abs().max() < LARGEST


@contextmanager
def nobody_waits() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl3"])
@pytest.mark.parametrize("kind", ["static", "compiled"])
def test_recorded_graphs_sample_what_the_model_samples(kind, family):
    engine = Engine(tiny_model(family=family).eval().cuda(), EngineConfig(kind))
    for seed in range(3):  # the first call records, later ones replay on other contents
        for row in range(4):  # row 1 has no middle camera
            assert_same(engine, tiny_batch(seed).observation[row : row + 1])
        assert_same(engine, tiny_batch(seed).observation)


def test_every_way_to_call_it():
    engine = Engine(tiny_model().eval().cuda(), EngineConfig("static"))
    whole = tiny_batch().observation
    as_floats = replace(whole, images=whole.images.float() / 255)
    for observation in (whole, as_floats, whole):
        assert_same(engine, observation)
    latents = engine.encode(whole.images.cuda())
    assert (latents - engine.model.encode_frames(whole.images.cuda())).abs().max() < LARGEST
    assert_same(engine, replace(whole, latents=latents))
    assert_same(engine, whole, guide=lambda velocity_at: lambda x, level: 0.5 * velocity_at(x, level))
    assert_same(engine, whole, solver="heun")


def test_bfloat16_and_eight_bits_stay_near():
    model = tiny_model().eval().cuda()
    observation = tiny_batch().observation
    noise = tiny_noise(tiny_batch())[0][:, 0].cuda()
    exact = model.sample(observation.to("cuda"), noise, 3, 3)[0]
    for how, most in (("none", 0.03), ("int8", 0.06)):
        engine = Engine(tiny_model().eval().cast(torch.bfloat16).cuda(), EngineConfig("static", quantize=how))
        for _ in range(2):
            found = engine.sample(on_cuda(observation), noise, 3, 3)[0]
            assert (found - exact).abs().mean(dim=(1, 2)).max() < most


def test_two_streams_do_not_disturb_each_other():
    engine = Engine(tiny_model().eval().cuda(), EngineConfig("static"))
    observation = on_cuda(tiny_batch().observation)
    noise = tiny_noise(tiny_batch())[0][:, 0].cuda()
    first = engine.sample(observation, noise, 3, 3)[0]
    for _ in range(1000):
        assert torch.equal(engine.sample(observation, noise, 3, 3)[0], first)


def test_the_host_waits_for_nothing_after_the_first_calls():
    policy = tiny_policy(action_mode="delta")
    policy.model.cuda()
    fast = policy.compile("static")
    noise = policy.noise([0], 0).cuda()

    def pictures(step: int) -> dict[str, torch.Tensor]:
        return {key: torch.stack((image, image), 1).cuda() for key, image in frames(1, step).items()}

    for step in range(2):
        fast.predict(pictures(step), states(1, step), ["pick it"], noise)
    images, state = pictures(2), states(1, 2)
    with nobody_waits():
        fast.predict(images, state, ["pick it"], noise)

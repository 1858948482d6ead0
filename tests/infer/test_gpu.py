"""The engine on CUDA: recorded graphs equal the model, and the host waits for nothing after the first calls."""

from dataclasses import replace

import pytest
import torch

from tests.model.tiny import tiny_batch, tiny_model, tiny_noise
from vla_mot.batch import Observation
from vla_mot.infer.engine import Engine, EngineConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


def on_cuda(observation: Observation) -> Observation:
    """Pictures and state on the device, masks and words on the host."""
    return replace(observation, images=observation.images.cuda(), state=observation.state.cuda())


@pytest.mark.parametrize("kind", ["static", "compiled"])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_recorded_graphs_sample_what_the_model_samples(kind, dtype, most):
    model = tiny_model().eval().cast(dtype).cuda()
    engine = Engine(model, EngineConfig(kind))
    for rows in (slice(0, 1), slice(None)):
        for seed in range(3):  # the first call records, later ones replay on other contents
            observation = tiny_batch(seed).observation[rows]
            noise = tiny_noise(tiny_batch(), seed=seed)[0][rows, 0].cuda()
            expected, foreseen = model.sample(observation.to("cuda"), noise, 3, 3)
            actions, foresight = engine.sample(on_cuda(observation), noise, 3, 3)
            assert (actions - expected).abs().mean() < most
            seen = observation.view_mask.cuda()
            assert (foresight[seen] - foreseen[seen]).abs().mean() < most


def test_the_host_waits_for_nothing_after_the_first_calls():
    engine = Engine(tiny_model().eval().cuda(), EngineConfig("static"))
    noise = tiny_noise(tiny_batch())[0][:1, 0].cuda()
    first, second = (on_cuda(tiny_batch(seed).observation[:1]) for seed in (0, 1))
    for _ in range(2):
        engine.sample(first, noise, 3, 3)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.sample(second, noise, 3, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")

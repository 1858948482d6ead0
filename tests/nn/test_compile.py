"""Compiled layers: one graph each, the eager values and gradients, and no compiling again once they are warm."""

import copy
from collections.abc import Iterator

import pytest
import torch
from tests.model.tiny import labelled, tiny_batch, tiny_model, tiny_noise
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from vla_mot.batch import Batch
from vla_mot.model.model import VlaMotModel
from vla_mot.nn.recompute import Recompute


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model: VlaMotModel, backend: str = "aot_eager") -> CompileCounterWithBackend:
    counter = CompileCounterWithBackend(backend)
    model.stack.compile_layers(backend=counter)
    return counter


def learned(model: VlaMotModel, batch: Batch, precision: str = "fp32", draws: int = 2) -> dict[str, Tensor]:
    """The gradients of a training step, and its losses."""
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        losses = model.losses(batch, *tiny_noise(batch, draws))
    total = losses.action_sum.sum() / losses.action_count.sum()
    total = total + losses.foresight_sum.sum() / losses.foresight_count.sum()
    total.backward()
    return {"loss": total.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_close(mine: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """Each gradient within `tolerance` of its norm."""
    assert mine.keys() == theirs.keys()
    for name, gradient in mine.items():
        assert (gradient - theirs[name]).norm() <= tolerance * theirs[name].norm(), name


@pytest.mark.parametrize(
    ("family", "recompute", "insulate"),
    [("qwen3_vl", "none", False), ("qwen3_vl", "full", True), ("internvl3", "selective", True)],
)
def test_a_compiled_training_step_has_the_eager_gradients(
    family: str, recompute: Recompute, insulate: bool
) -> None:
    batch, results = labelled(tiny_batch()), []
    for compiling in (False, True):
        model = tiny_model(family=family).train()
        model.stack.recompute, model.stack.insulate = recompute, insulate
        names = list(model.state_dict())
        if compiling:
            counter = compiled(model)
        results.append(learned(model, batch))
        assert list(model.state_dict()) == names
    assert counter.frame_count == 2  # one program for all layers but the last, which leaves outputs out
    assert_close(results[1], results[0], 1e-5)


@pytest.mark.parametrize("recompute", ["selective"])
def test_mixed_precision_compiles_too(recompute: Recompute) -> None:
    batch, results = labelled(tiny_batch()), []
    for compiling in (False, True):
        model = tiny_model().train()
        model.stack.recompute = recompute
        if compiling:
            compiled(model)
        results.append(learned(model, batch, precision="bf16"))
    assert_close(results[1], results[0], 0.02)  # bfloat16 has 8 bits; fused sums round elsewhere


@pytest.mark.slow
def test_once_warm_no_step_validation_or_sampling_compiles_again() -> None:
    model = tiny_model()
    counter = compiled(model)

    def everything(seed: int) -> None:
        batch = labelled(tiny_batch(seed))
        learned(model.train(), batch)
        with torch.no_grad():
            model.eval().losses(batch, *tiny_noise(batch))
            for some in (batch, batch[:3], batch[:1]):
                model.sample(some.observation, tiny_noise(some)[0][:, 0], 3, 3)
        learned(model.train(), batch[:3])

    everything(0)
    programs = counter.frame_count
    assert programs > 8  # more than torch's own limit
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in (1, 2, 3):
            everything(seed)
    assert counter.frame_count == programs


@pytest.mark.slow
@torch.no_grad()
def test_sampling_from_a_cached_prefix_compiles() -> None:
    batch = tiny_batch()
    noise, _ = tiny_noise(batch)
    model = tiny_model().eval()
    expected = model.sample(batch.observation, noise[:, 0], 3, 3)
    compiled(model)
    for mine, theirs in zip(model.sample(batch.observation, noise[:, 0], 3, 3), expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


@pytest.mark.slow
def test_other_batch_sizes_work_and_end_in_a_program_for_all_of_them() -> None:
    model, sizes = tiny_model().eval(), (4, 3, 2)
    batch = labelled(tiny_batch())
    noise, level = tiny_noise(batch)
    with torch.no_grad():
        expected = [model.losses(batch[:n], noise[:n], level[:n]).action_sum for n in sizes]
        counter = compiled(model)
        found, programs = [], []
        for n in sizes:
            found.append(model.losses(batch[:n], noise[:n], level[:n]).action_sum)
            programs.append(counter.frame_count)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5)
    assert programs[2] == programs[1]


def kept_bytes(model: VlaMotModel, batch: Batch) -> int:
    """What a pass keeps for its backward pass, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        losses = model.losses(batch, *tiny_noise(batch, 4))
    assert losses.action_sum.requires_grad
    return sum(size for place, size in held.items() if place not in weights)


@pytest.mark.slow
def test_a_compiled_layer_recomputes_what_it_is_told_to() -> None:
    found = {}
    for recompute in ("none", "selective", "full"):
        model = tiny_model().train()
        model.stack.recompute = recompute
        compiled(model)
        found[recompute] = kept_bytes(model, labelled(tiny_batch()))
    assert found["full"] < 0.9 * found["selective"] < 0.9**2 * found["none"]


def test_hooks_of_a_layer_run_outside_of_its_program() -> None:
    """As sharding needs it, whose hooks gather the weights of a layer before it runs."""
    model, batch, ran = tiny_model().train(), labelled(tiny_batch()), []
    compiled(model)
    for layer in model.stack.layers:
        layer.register_forward_pre_hook(lambda *_: ran.append(torch.compiler.is_compiling()))
    learned(model, batch)
    learned(model, batch)
    assert ran == [False] * 2 * len(model.stack.layers)


@pytest.mark.slow
def test_a_copy_of_a_compiled_model_runs_its_own_weights() -> None:
    model, batch = tiny_model().train(), labelled(tiny_batch())
    compiled(model)
    before = learned(model, batch)["loss"]
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.stack.parameters():
            weight.mul_(0.5)
    assert not torch.allclose(learned(other, batch)["loss"], before, rtol=1e-2)
    assert torch.equal(learned(model, batch)["loss"], before)


@pytest.mark.slow
@pytest.mark.parametrize(("recompute", "precision"), [("selective", "fp32"), ("full", "bf16")])
def test_torch_s_own_compiler_agrees(recompute: Recompute, precision: str) -> None:
    batch, results = labelled(tiny_batch()), []
    for compiling in (False, True):
        model = tiny_model().train()
        model.stack.recompute, model.stack.insulate = recompute, True
        if compiling:
            compiled(model, "inductor")
        results.append(learned(model, batch, precision))
    assert_close(results[1], results[0], 1e-4 if precision == "fp32" else 0.03)

"""The engine samples what the model samples: over every form of observation, in both kinds, without making anew."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from tests.infer.tiny_policy import frames, states, tiny_policy
from tests.model.tiny import ACTION_DIM, CHUNK, backbone_options, tiny_batch, tiny_model, tiny_noise
from vla_mot.batch import Observation
from vla_mot.errors import ConfigError
from vla_mot.flow.solvers import Velocity
from vla_mot.infer.engine import Engine, EngineConfig
from vla_mot.infer.engine import engine as engines
from vla_mot.model.heads import ActionHead
from vla_mot.model.model import VlaMotModel
from vla_mot.nn import projection

TOLERANCE = 2e-5


def observed(rows: slice = slice(None), seed: int = 0, **changes: torch.Tensor) -> Observation:
    return replace(tiny_batch(seed).observation[rows], **changes)


def noise_for(observation: Observation) -> torch.Tensor:
    return tiny_noise(tiny_batch())[0][: observation.batch_size, 0]


def assert_same(engine: Engine, observation: Observation, steps: int = 3, **options) -> None:
    noise = noise_for(observation)
    actions, foresight = engine.model.sample(observation, noise, steps, 3, **options)
    found, foreseen = engine.sample(observation, noise, steps, 3, **options)
    assert torch.allclose(found, actions, atol=TOLERANCE), float((found - actions).abs().max())
    if foreseen is not None:
        seen = observation.view_mask
        assert torch.allclose(foreseen[seen], foresight[seen], atol=TOLERANCE)


def static(model: VlaMotModel, **options) -> Engine:
    return Engine(model.eval(), EngineConfig("static", **options))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mask_padding": False},
        {"positions": "released"},
        {"family": "internvl3"},
        {"backbone": backbone_options("qwen3_vl", causal=True)},
        {"backbone": backbone_options("qwen3_vl", deepstack=True)},
    ],
    ids=["plain", "padded", "released", "internvl3", "causal", "deepstack"],
)
def test_it_samples_what_the_model_samples(changes):
    engine = static(tiny_model(**changes))
    assert_same(engine, observed())  # rows that differ in cameras and words: with masks
    for row in range(4):
        assert_same(engine, observed(slice(row, row + 1)))  # each by itself: with none
    for solver in ("midpoint", "heun"):
        assert_same(engine, observed(slice(0, 1)), steps=2, solver=solver)


@pytest.fixture
def two_threads(monkeypatch) -> Iterator[None]:
    """Products are cut in two, as at full size."""
    monkeypatch.setattr(projection, "_FEWEST_COLUMNS", 8)
    monkeypatch.setattr(projection, "_FEWEST_ROWS", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="no MKL: never cut")
@pytest.mark.parametrize("family", ["qwen3_vl", "internvl3"])  # without and with biases
def test_products_side_by_side_give_the_same(two_threads, family):
    engine = static(tiny_model(family=family))
    with torch.profiler.profile(record_shapes=True) as profile:
        assert_same(engine, observed())
        assert_same(engine, observed(slice(0, 1)))
    asked = {"aten::bmm": 1, "aten::baddbmm": 2}
    cut = {tuple(e.input_shapes[asked[e.name]]) for e in profile.events() if e.name in asked}
    layers = engine._fused[0]
    stack = [one for layer in layers.values() for one in (layer.qkv, layer.gate_up, layer.output, layer.down)]
    for columns, depth in {tuple(one.weight.shape) for one in (*stack, *engine._maps)}:
        assert (2, depth, columns // 2) in cut


@pytest.mark.parametrize("multiple", [1, 3, 100])
def test_how_much_text_is_kept_changes_nothing(multiple):
    engine = static(tiny_model(), text_multiple=multiple)
    for row in (1, 3):
        assert_same(engine, observed(slice(row, row + 1)))


def test_tokens_that_nobody_reads_are_left_out():
    engine = static(tiny_model(), text_multiple=1)
    first, second = observed(slice(0, 1)), observed(slice(1, 2))
    for observation in (first, second):
        assert_same(engine, observation)
    counts = [plan.counts for plan in engine._plans.values()]
    views = [len(plan.form.views) for plan in engine._plans.values()]
    assert views == [3, 2]
    assert counts[0][1] == counts[1][1] * 3 // 2, "generation tokens of the views that are there"
    assert not any(any(plan.form.masked) for plan in engine._plans.values()), "whole blocks need no mask"


@pytest.mark.parametrize("made", ["plan", "stages", "terms"])
def test_what_a_form_needs_is_made_by_its_first_call_alone(made, monkeypatch):
    def refuse(*told: object, **options: object) -> None:
        raise AssertionError("made anew")

    places = {
        "plan": (engines, "make_plan"),
        "stages": (engines, "Stages"),
        "terms": (ActionHead, "level_terms"),
    }
    engine, other = static(tiny_model()), observed(slice(0, 2), 7)
    noise = noise_for(other)
    expected = engine.model.sample(other, noise, 3, 3)[0]
    assert_same(engine, observed(slice(0, 2)))
    monkeypatch.setattr(*places[made], refuse)
    assert torch.allclose(engine.sample(other, noise, 3, 3)[0], expected, atol=TOLERANCE)
    with pytest.raises(AssertionError, match="made anew"):  # another form, and other steps
        engine.sample(observed(slice(2, 3)), noise[:1], 4, 3)


class Copies(TorchDispatchMode):
    """Notes how many elements every copy has that is made meanwhile."""

    KINDS = (torch.ops.aten.cat, torch.ops.aten.clone, torch.ops.aten.copy_)

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in self.KINDS:
            self.sizes.append(result.numel())
        return result


def test_denoising_copies_no_keys_of_the_prefix():
    """New ones are written behind them; the model itself puts both together at every step."""
    engine, seen = static(tiny_model()), observed(slice(0, 1))
    noise = noise_for(seen)
    engine.sample(seen, noise, 3, 3)
    (form,), (plan,) = engine._forms.values(), engine._plans.values()
    assert not any(plan.form.masked)
    ((key, (run, *tables)),) = form.denoise.items()
    ours, theirs = Copies(), Copies()

    def watched(*told, **options):
        with ours:
            return run(*told, **options)

    form.denoise[key] = (watched, *tables)
    assert_same(engine, seen)
    kept = plan.prefix * form.stages.cache.keys[0][0, 0].numel()
    assert ours.sizes and max(ours.sizes) < kept
    with theirs, torch.no_grad():
        engine.model.denoise(engine.model.prefill(seen), noise, torch.ones(1))
    assert max(theirs.sizes) >= kept


def test_other_contents_and_a_weight_that_changed_are_seen():
    engine = static(tiny_model())
    for seed in range(3):
        assert_same(engine, observed(slice(0, 2), seed))
    assert len(engine._forms) == 1
    engine.model.load_state_dict(tiny_model(5).state_dict())
    engine.forget()
    assert_same(engine, observed(slice(0, 2)))


def test_latents_that_are_known_are_not_encoded_again():
    engine = static(tiny_model())
    observation = observed()
    latents = engine.model.encode_frames(observation.images)
    known = replace(observation, latents=latents)
    assert_same(engine, observation)
    assert_same(engine, known)
    (form,) = engine._forms.values()
    form.encode = None  # whoever asks for it fails
    blank = replace(known, images=known.images.clone())
    blank.images[:, :, 0] = 0
    assert_same(engine, blank)


def test_a_guide_bends_the_flow_and_may_ask_for_gradients():
    def guide(velocity_at: Velocity) -> Velocity:
        def bent(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                velocity = velocity_at(x, level)
                (slope,) = torch.autograd.grad(velocity.square().sum(), x)
            return velocity.detach() - 0.1 * slope

        return bent

    engine = static(tiny_model())
    assert_same(engine, observed(), guide=guide)
    assert_same(engine, observed(slice(0, 1)))


def test_foresight_may_be_left_out_and_changes_no_action():
    engine = static(tiny_model(), foresight=False)
    assert_same(engine, observed())
    assert engine.sample(observed(), noise_for(observed()), 2, 3)[1] is None


def test_without_the_generation_expert_history_is_not_seen():
    engine = static(tiny_model(), generation=False)
    observation = observed(slice(0, 1))
    noise = noise_for(observation)
    actions, foresight = engine.sample(observation, noise, 3, 3)
    assert foresight is None
    other = replace(observation, images=observation.images.clone())
    other.images[:, :, 0] = 255 - other.images[:, :, 0]
    assert torch.equal(engine.sample(other, noise, 3, 3)[0], actions)
    assert not torch.allclose(engine.model.sample(observation, noise, 3, 3)[0], actions, atol=1e-3)


def test_understanding_may_be_older_than_the_rest_within_one_session():
    engine = static(tiny_model(), understanding_every=3)
    exact = static(tiny_model())
    old, new = observed(slice(0, 1)), observed(slice(0, 1), 7)
    new = replace(new, token_ids=old.token_ids)
    noise = noise_for(old)
    truth = exact.sample(new, noise, 3, 3)[0]
    engine.sample(old, noise, 3, 3, session="a")
    stale = engine.sample(new, noise, 3, 3, session="a")[0]
    assert not torch.allclose(stale, truth, atol=1e-4)
    assert not torch.allclose(stale, exact.sample(old, noise, 3, 3)[0], atol=1e-4), "the rest is fresh"
    assert torch.equal(engine.sample(new, noise, 3, 3, session="a")[0], stale), "the second one"
    assert torch.allclose(engine.sample(new, noise, 3, 3, session="a")[0], truth, atol=TOLERANCE), "the third"
    engine.sample(old, noise, 3, 3, session="a")
    assert torch.allclose(engine.sample(new, noise, 3, 3, session="b")[0], truth, atol=TOLERANCE)
    engine.sample(old, noise, 3, 3, session="b")
    other = replace(new, token_ids=new.token_ids.flip(1))
    expected = exact.sample(other, noise, 3, 3)[0]
    assert torch.allclose(engine.sample(other, noise, 3, 3, session="b")[0], expected, atol=TOLERANCE)


def from_float32(model: VlaMotModel) -> tuple[float, float]:
    """How far an engine and the model, both in bfloat16, are from the model in float32."""
    seen = observed()
    exact = model.eval().sample(seen, noise_for(seen), 3, 3)[0]
    model.cast(torch.bfloat16)
    found, rounded = (which.sample(seen, noise_for(seen), 3, 3)[0] for which in (static(model), model))
    return float((found - exact).abs().mean()), float((rounded - exact).abs().mean())


def test_bfloat16_stays_near_the_model_in_bfloat16():
    """Over several weights, since one rounding may cancel another."""
    ours, theirs = zip(*(from_float32(tiny_model(seed)) for seed in range(6)), strict=True)
    assert 0 < sum(ours) < 1.5 * sum(theirs)


@pytest.mark.parametrize(("how", "most"), [("int8", 0.02), ("fp8", 0.06)])
def test_eight_bits_of_the_action_expert_move_actions_a_little(how, most):
    model = tiny_model().eval()
    exact = model.sample(observed(), noise_for(observed()), 3, 3)[0]
    found = static(model, quantize=how).sample(observed(), noise_for(observed()), 3, 3)[0]
    assert 0 < (found - exact).abs().mean() < most * exact.abs().mean()
    assert torch.equal(model.sample(observed(), noise_for(observed()), 3, 3)[0], exact), (
        "the model keeps its own"
    )


def test_eight_bits_without_torchao_are_refused_in_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ConfigError, match=r"quantize=int8 needs torchao: pip install"):
        static(tiny_model(), quantize="int8")


def test_weights_keep_names_values_and_files(tmp_path):
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    static(model), static(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    save_file(after, tmp_path / "model.safetensors")
    assert all(
        torch.equal(value, before[name]) for name, value in load_file(tmp_path / "model.safetensors").items()
    )


def test_no_weight_is_held_twice():
    model = tiny_model().eval()
    before = held(model.state_dict().values())
    fused = [
        tensor
        for layer in static(model)._fused
        for part in layer.values()
        for one in (part.qkv, part.gate_up, part.output, part.down)
        for tensor in (one.weight, one.bias)
        if tensor is not None
    ]
    assert fused and held([*model.state_dict().values(), *fused]) == before


def held(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the memory behind them, each place counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_bytes_and_floats_are_two_forms():
    engine = static(tiny_model())
    as_bytes = observed(slice(0, 1))
    as_floats = replace(as_bytes, images=as_bytes.images.float() / 255)
    for observation in (as_bytes, as_floats, as_bytes):
        assert_same(engine, observation)
    assert len(engine._forms) == 2


def test_forms_and_plans_that_were_not_used_for_long_give_way(monkeypatch):
    monkeypatch.setattr(engines, "_MOST_FORMS", 2)
    monkeypatch.setattr(engines, "_MOST_PLANS", 1)
    engine = static(tiny_model())
    for _ in range(3):
        for row in range(4):
            assert_same(engine, observed(slice(row, row + 1)))
            assert len(engine._forms) <= 2 and len(engine._plans) == 1


def test_understanding_is_never_older_than_said_whatever_comes_between():
    engine, exact = static(tiny_model(), understanding_every=3, text_multiple=1), static(tiny_model())
    one = observed(slice(3, 4))  # four words
    other = observed(slice(0, 1))  # more words, and so another form
    noise = noise_for(one)
    engine.sample(one, noise, 3, 3, session="a")
    engine.sample(other, noise, 3, 3, session="a")
    new = observed(slice(3, 4), 5, token_ids=one.token_ids)
    truth = exact.sample(new, noise, 3, 3)[0]
    assert torch.allclose(engine.sample(new, noise, 3, 3, session="a")[0], truth, atol=TOLERANCE)
    assert engine.understanding_age == 0
    engine.sample(new, noise, 3, 3, session="a")
    assert engine.understanding_age == 1


def test_understanding_may_be_renewed_after_a_call_for_the_next_ones():
    options = {"understanding_every": 2, "understanding_ahead": True}
    engine, slow = static(tiny_model(), **options), static(tiny_model(), understanding_every=9)
    words = observed(slice(0, 1)).token_ids
    seen = [observed(slice(0, 1), seed, token_ids=words) for seed in range(6)]
    noise, ages = noise_for(seen[0]), []
    for step, understood in enumerate((0, 0, 0, 2, 2, 4)):
        actions, _ = engine.sample(seen[step], noise, 3, 3, session="a")
        ages.append(engine.understanding_age)
        engine.look(seen[step], "a")
        slow.sample(seen[understood], noise, 3, 3, session=step)
        expected, _ = slow.sample(seen[step], noise, 3, 3, session=step)
        if step != understood:
            assert torch.allclose(actions, expected, atol=TOLERANCE), step
    assert ages == [0, 1, 2, 1, 2, 1]


def test_nobody_looks_for_another_session():
    engine = static(tiny_model(), understanding_every=1, understanding_ahead=True)
    one = observed(slice(0, 1))
    engine.look(one, "a")
    engine.sample(one, noise_for(one), 3, 3, session="a")
    engine.sample(one, noise_for(one), 3, 3, session="a")
    assert engine.understanding_age == 1
    engine.look(one, "b")
    assert engine.understanding_age == 1, "a's is as old as it was"
    engine.look(one, "a")
    assert engine.understanding_age == 0


def test_a_call_that_failed_leaves_no_understanding_behind():
    engine, exact = static(tiny_model(), understanding_every=3), static(tiny_model())
    old, new = observed(slice(0, 1)), observed(slice(0, 1), 7)
    new = replace(new, token_ids=old.token_ids)
    noise = noise_for(old)
    engine.sample(old, noise, 3, 3, session="x")
    (form,) = engine._forms.values()
    vision, form.vision = form.vision, None
    with pytest.raises(TypeError):
        engine.sample(new, noise, 3, 3, session="y")
    form.vision = vision
    truth = exact.sample(new, noise, 3, 3)[0]
    assert torch.allclose(engine.sample(new, noise, 3, 3, session="y")[0], truth, atol=TOLERANCE)


def test_rounded_weights_follow_those_that_were_loaded():
    engine = static(tiny_model(), quantize="int8")
    engine.model.load_state_dict(tiny_model(5).state_dict())
    engine.forget()
    exact = engine.model.sample(observed(), noise_for(observed()), 3, 3)[0]
    found = engine.sample(observed(), noise_for(observed()), 3, 3)[0]
    assert (found - exact).abs().mean() < 0.02 * exact.abs().mean()


def test_weights_that_were_moved_or_replaced_are_noticed():
    engine = static(tiny_model())
    engine.sample(observed(), noise_for(observed()), 2, 3)
    engine.model.load_state_dict(tiny_model(5).state_dict(), assign=True)
    with pytest.raises(ConfigError, match=r"moved, cast or replaced .* engine\.forget"):
        engine.sample(observed(), noise_for(observed()), 2, 3)
    engine.forget()
    assert_same(engine, observed())


def test_one_weight_that_was_replaced_is_noticed():
    expert = "experts.action"
    names = [f"stack.layers.1.{expert}.mlp.{name}_proj" for name in ("gate", "up", "down")]
    names += [f"stack.layers.1.{expert}.self_attn.{name}_proj" for name in "qkvo"]
    names += [f"generation.{name}" for name in ("in_proj", "downsample", "upsample")]
    for name in names:
        engine = static(tiny_model())
        part = engine.model.get_submodule(name)
        part.weight.data = part.weight.data.clone()
        with pytest.raises(ConfigError, match=r"moved, cast or replaced"):
            engine.sample(observed(), noise_for(observed()), 2, 3)


def test_a_first_call_in_inference_mode_spoils_no_later_one():
    engine = static(tiny_model())
    with torch.inference_mode():
        engine.sample(observed(), noise_for(observed()), 2, 3)
    assert_same(engine, observed())


def test_a_policy_behind_an_engine_acts_the_same():
    policy = tiny_policy()
    fast = policy.compile("static")
    images = {key: torch.stack((value, value), dim=1) for key, value in frames(2).items()}
    told = (images, states(2), ["pick the red block", "pick it"], policy.noise([0, 1], 0))
    mine, theirs = fast.predict(*told), policy.predict(*told)
    assert torch.allclose(mine.actions, theirs.actions, atol=TOLERANCE)
    assert fast.with_sampler(num_steps=2).engine is fast.engine
    assert set(fast.engine.timed(fast.observe(*told[:3]), told[3], 2, 3)) == {
        "vision", "understanding", "encode", "foresight", "denoise",
    }  # fmt: skip


def test_without_any_camera_it_says_so():
    observation = observed(view_mask=torch.zeros(4, 3, dtype=torch.bool))
    with pytest.raises(ConfigError, match="the camera of every slot is absent"):
        static(tiny_model()).sample(observation, torch.zeros(4, CHUNK, ACTION_DIM), 2, 3)


@pytest.mark.slow
def test_compiled_is_the_same_and_compiles_nothing_twice(two_threads):
    engine = Engine(tiny_model().eval(), EngineConfig("compiled"))
    assert_same(engine, observed(slice(0, 1)))
    with torch.compiler.set_stance("fail_on_recompile"):
        for seed in (1, 2):
            assert_same(engine, observed(slice(0, 1), seed))

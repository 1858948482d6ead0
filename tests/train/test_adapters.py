"""Adapters learn, what they adapt does not, and both together are a plain model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.model.tiny import FAMILIES, labelled, tiny_batch, tiny_config, tiny_model, tiny_noise
from tests.train.runs import parted, saved_state, train_config, trainer

from vla_mot.errors import ConfigError
from vla_mot.model.model import VlaMotModel
from vla_mot.train.adapters import inject, merged
from vla_mot.train.checkpoint import find_checkpoint
from vla_mot.train.config import AdapterConfig, ExpertsConfig, ExpertTraining, ParallelConfig
from vla_mot.train.experts import EXPERTS, expert_of, freeze, groups, trained

pytest.importorskip("peft", reason="needs vla-mot[peft]")
pytestmark = pytest.mark.filterwarnings("error:Already found a `peft_config`")

LORA = ExpertTraining(adapter=AdapterConfig(rank=3, alpha=5.0))
DORA = ExpertTraining(adapter=AdapterConfig(kind="dora", rank=2, alpha=4.0), lr_scale=2.0)
CASES = {
    "lora": ExpertsConfig(understanding=LORA, action=LORA),
    "dora": ExpertsConfig(vision=DORA, understanding=DORA, generation=DORA, action=DORA),
    "both": ExpertsConfig(ExpertTraining(frozen=True), LORA, ExpertTraining(), DORA),
}


def adapted(case: ExpertsConfig, family: str = "qwen3_vl", drawn: bool = True) -> VlaMotModel:
    """drawn: the adapters are not at their start, where they change nothing."""
    model = tiny_model(family=family)
    freeze(model, case)
    inject(model, case, seed=1)
    if drawn:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
                elif "magnitude" in name:
                    weight.mul_(1 + 0.3 * torch.rand(weight.shape, generator=generator))
    return model


def outputs(model: VlaMotModel) -> list[torch.Tensor]:
    batch = labelled(tiny_batch())
    noise, level = tiny_noise(batch, draws=2)
    with torch.no_grad():
        return [*model._joint(batch, noise, level), *model.sample(batch.observation, noise[:, 0], 2, 3)]


def plain(model: VlaMotModel, case: ExpertsConfig, family: str = "qwen3_vl") -> VlaMotModel:
    other = VlaMotModel(tiny_config(family))
    other.load_state_dict(merged(model.state_dict(), case), strict=True)
    return other


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_merged_model_is_a_plain_one_of_the_same_outputs(case: ExpertsConfig, family: str) -> None:
    model = adapted(case, family)
    for mine, theirs in zip(outputs(plain(model, case, family)), outputs(model), strict=True):
        assert (mine - theirs).norm() < 1e-5 * theirs.norm()
    for mine, theirs in zip(outputs(tiny_model(family=family)), outputs(model), strict=True):
        assert (mine - theirs).norm() > 0.01 * theirs.norm()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_merged_weight_is_what_peft_itself_would_merge(case: ExpertsConfig) -> None:
    from peft.tuners.lora import Linear

    model = adapted(case)
    ours = merged(model.state_dict(), case)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    for name, layer in layers.items():
        layer.merge()
        theirs = layer.get_base_layer().weight
        assert (ours[f"{name}.weight"] - theirs).norm() < 1e-6 * theirs.norm(), name
    assert layers and len(layers) == len(inject(tiny_model(), case, seed=0))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_adapters_begin_by_changing_nothing_and_depend_on_their_seed_alone(case: ExpertsConfig) -> None:
    for mine, theirs in zip(outputs(adapted(case, drawn=False)), outputs(tiny_model()), strict=True):
        assert (mine - theirs).norm() < 1e-5 * theirs.norm()
    torch.manual_seed(7)
    first = adapted(case, drawn=False).state_dict()
    torch.manual_seed(8)
    second = adapted(case, drawn=False).state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def learned(model: VlaMotModel) -> dict[str, torch.Tensor]:
    batch = labelled(tiny_batch())
    losses = model.losses(batch, *tiny_noise(batch, draws=2))
    (losses.action_sum.sum() + losses.foresight_sum.sum()).backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("recompute", ["none", "full", "selective"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_only_adapters_learn_where_adapters_are(case: ExpertsConfig, family: str, recompute: str) -> None:
    model, whole = adapted(case, family).train(), tiny_model(family=family)
    model.stack.recompute = recompute
    gradients = learned(model)
    for name, gradient in gradients.items():
        home = getattr(case, expert_of(name))
        assert not home.frozen and ("lora_" in name) == (home.adapter is not None), name
        assert torch.count_nonzero(gradient) > 0, name
    assert gradients.keys() == {name for name, weight in model.named_parameters() if weight.requires_grad}
    counts, before = trained(model), trained(whole)
    for name in EXPERTS:
        home = getattr(case, name)
        if home.frozen:
            assert counts[name] == 0
        elif home.adapter is None:
            assert counts[name] == before[name]
        else:
            assert 0 < counts[name] < before[name]


def test_adapters_train_at_their_expert_s_rate_and_lengths_do_not_decay() -> None:
    model = adapted(CASES["both"])
    found = groups(model.named_parameters(), CASES["both"])
    assert {(group.lr_scale, group.decays) for group in found} == {
        (1, True),
        (1, False),
        (2, True),
        (2, False),
    }
    lengths = {id(p) for name, p in model.named_parameters() if "magnitude" in name}
    slow = {id(p) for group in found if group.lr_scale == 2 and not group.decays for p in group.params}
    assert lengths == slow


def test_a_state_with_adapters_loads_into_a_model_prepared_alike() -> None:
    case = CASES["both"]
    model, other = adapted(case), tiny_model(seed=5)
    freeze(other, case)
    inject(other, case, seed=6)
    other.load_state_dict(model.state_dict(), strict=True)
    for mine, theirs in zip(outputs(other), outputs(model), strict=True):
        assert torch.equal(mine, theirs)


def test_without_adapters_nothing_is_touched() -> None:
    model = tiny_model()
    before = {name: weight.requires_grad for name, weight in model.named_parameters()}
    assert inject(model, ExpertsConfig(), seed=0) == []
    assert before == {name: weight.requires_grad for name, weight in model.named_parameters()}
    state = model.state_dict()
    same = merged(state, ExpertsConfig())
    assert list(same) == list(state) and all(same[name] is state[name] for name in state)


def test_a_bfloat16_weight_is_merged_in_float32_and_stays_bfloat16() -> None:
    case = CASES["lora"]
    model = adapted(case)
    exact = merged(model.state_dict(), case)
    rounded = {name: x.bfloat16() if "base_layer" in name else x for name, x in model.state_dict().items()}
    for name, weight in merged(rounded, case).items():
        assert weight.dtype == (torch.bfloat16 if name in _adapted_names(model) else exact[name].dtype)
        assert torch.allclose(weight.float(), exact[name].float(), atol=0.02)


def _adapted_names(model: VlaMotModel) -> set[str]:
    return {name.replace(".base_layer.", ".") for name in model.state_dict() if ".base_layer." in name}


def test_dropout_is_of_the_adapters_input_and_only_in_training() -> None:
    wet = replace(LORA, adapter=AdapterConfig(rank=3, dropout=0.5))
    case = ExpertsConfig(action=wet)
    model = adapted(case).eval()
    first, second = outputs(model), outputs(model)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    model.train()
    assert not torch.equal(outputs(model)[0], outputs(model)[0])


def test_a_resumed_run_drops_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    wet = ExpertsConfig(action=ExpertTraining(adapter=AdapterConfig(rank=3, dropout=0.5)))
    whole = trainer(tmp_path / "whole", experts=wet)
    before = torch.get_rng_state()
    whole.run()
    assert torch.equal(torch.get_rng_state(), before)
    parted(tmp_path / "parts", experts=wet)
    mine, theirs = (saved_state(find_checkpoint(tmp_path / name)) for name in ("parts", "whole"))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "recompute"), [("both", "none"), ("lora", "selective")])
def test_adapted_layers_compile_without_graph_breaks(case: str, recompute: str) -> None:
    torch._dynamo.reset()
    found = []
    for compiling in (False, True):
        model = adapted(CASES[case]).train()
        model.stack.recompute = recompute
        if compiling:
            model.stack.compile_layers(backend="aot_eager")
        found.append(learned(model))
    torch._dynamo.reset()
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert (gradient - found[1][name]).norm() < 1e-5 * gradient.norm(), name


def test_what_torch_cannot_compile_is_refused_before_anything_starts() -> None:
    train_config(experts=CASES["lora"], parallel=ParallelConfig(compile=True, recompute="full"))
    train_config(experts=CASES["dora"], parallel=ParallelConfig(compile=True))
    with pytest.raises(ConfigError, match=r"recompute=full do not go .* dora \(action\).*kind: lora"):
        train_config(experts=CASES["both"], parallel=ParallelConfig(compile=True, recompute="full"))

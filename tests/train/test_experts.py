"""Every weight of every model has one home, and trains as that home is told to."""

import pytest
import torch
from tests.composed import composed
from tests.model.tiny import FAMILIES, tiny_batch, tiny_config, tiny_model, tiny_noise

from vla_mot.commands.training_settings import training_config
from vla_mot.conf_dir import conf_dir
from vla_mot.errors import ConfigError
from vla_mot.model.config import ModelConfig
from vla_mot.model.model import VlaMotModel
from vla_mot.model.objective import objective
from vla_mot.train.config import AdapterConfig, ExpertsConfig, ExpertTraining, TrainConfig
from vla_mot.train.experts import EXPERTS, expert_of, freeze, groups, trained
from vla_mot.train.parallel import arrange

PRESETS = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))
FROZEN, ADAPTED = ExpertTraining(frozen=True), ExpertTraining(adapter=AdapterConfig())


def on_meta(config: ModelConfig) -> VlaMotModel:
    with torch.device("meta"):
        return VlaMotModel(config)


def check_homes(model: VlaMotModel) -> None:
    homes = {name: expert_of(name) for name, _ in model.named_parameters()}
    tokenizer = {name for name, home in homes.items() if home is None}
    assert tokenizer == {f"tokenizer.{name}" for name, _ in model.tokenizer.named_parameters()}
    assert set(homes.values()) - {None} == set(EXPERTS)
    words, width = model.config.backbone["vocab_size"], model.understanding.hidden_size
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert all(home == "understanding" for name, home in homes.items() if shapes[name] == (words, width))
    assert homes["understanding.embed_tokens.weight"] == "understanding"
    assert homes["stack.layers.0.experts.understanding.self_attn.q_proj.weight"] == "understanding"
    assert homes["stack.norms.generation.weight"] == homes["generation.downsample.weight"] == "generation"
    assert homes["stack.norms.action.weight"] == homes["action.state_proj.bias"] == "action"


@pytest.mark.parametrize("preset", PRESETS)
def test_no_weight_of_a_preset_is_without_a_home(preset: str) -> None:
    config = training_config(composed("posttrain", "data.root=x", "output=x", f"model={preset}"))
    check_homes(on_meta(config.model))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_weight_of_a_backbone_is_without_a_home(family: str) -> None:
    model = on_meta(tiny_config(family))
    check_homes(model)
    vision = {name for name, _ in model.named_parameters() if expert_of(name) == "vision"}
    tower = {"qwen3_vl": ("visual.",), "internvl3": ("vision_tower.", "multi_modal_projector.")}[family]
    assert vision == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(tuple(f"understanding.{t}" for t in tower))
    }


def test_a_name_that_nobody_owns_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match=r"no expert owns the parameter 'extra\.weight'"):
        expert_of("extra.weight")


@pytest.mark.parametrize("frozen", EXPERTS)
def test_a_frozen_expert_gets_no_gradient_and_the_others_do(frozen: str) -> None:
    model, before = tiny_model(), trained(tiny_model())
    freeze(model, ExpertsConfig(**{frozen: FROZEN}))
    assert all(before.values()) and trained(model) == {**before, frozen: 0}
    batch = tiny_batch()
    losses = model.losses(batch, *tiny_noise(batch))
    (losses.action_sum.sum() + losses.foresight_sum.sum()).backward()
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            assert expert_of(name) != frozen, name
    assert {expert_of(n) for n, p in model.named_parameters() if p.grad is not None} == set(EXPERTS) - {
        frozen
    }


def test_freezing_never_thaws_what_the_model_froze() -> None:
    model = tiny_model()
    unused = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert any(name.startswith("stack.") for name in unused)
    freeze(model, ExpertsConfig())
    assert unused == {name for name, weight in model.named_parameters() if not weight.requires_grad}


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"every expert is frozen.*train\.experts"):
        freeze(tiny_model(), ExpertsConfig(*[FROZEN] * len(EXPERTS)))
    freeze(tiny_model(), ExpertsConfig(FROZEN, FROZEN, FROZEN, ADAPTED))


@pytest.mark.parametrize("without", [{}, {"generation": None, "foresight": None}])
def test_what_no_loss_reaches_behind_the_wall_is_frozen_or_refused(without: dict) -> None:
    told = {"insulate": True, "foresight_weight": 0.1 if without else 0.0}
    untaught = ("vision", "understanding") if without else ("vision", "understanding", "generation")
    said = "no generation expert" if without else "foresight_weight is 0"
    with pytest.raises(ConfigError, match=rf"{', '.join(untaught)} no gradient.*{said}.*insulate=false"):
        arrange(tiny_model(**without), TrainConfig(**told))
    some = ExpertsConfig(vision=FROZEN)
    with pytest.raises(ConfigError, match=f"sends {', '.join(untaught[1:])} no gradient"):
        arrange(tiny_model(**without), TrainConfig(**told, experts=some))
    model, batch = tiny_model(**without), tiny_batch()
    frozen = ExpertsConfig(**dict.fromkeys(untaught, FROZEN))
    arrange(model, TrainConfig(**told, experts=frozen))
    objective(model.losses(batch, *tiny_noise(batch)), told["foresight_weight"]).total.backward()
    assert all(weight.grad.abs().max() > 0 for weight in model.parameters() if weight.requires_grad)


def test_an_expert_that_is_not_there_trains_in_no_way() -> None:
    model = tiny_model(generation=None, foresight=None)
    with pytest.raises(ConfigError, match=r"train\.experts\.generation says how .* does not have"):
        freeze(model, ExpertsConfig(generation=FROZEN))
    with pytest.raises(ConfigError, match="every expert is frozen"):
        freeze(model, ExpertsConfig(vision=FROZEN, understanding=FROZEN, action=FROZEN))
    freeze(model, ExpertsConfig(vision=FROZEN))
    assert trained(model)["generation"] == trained(model)["vision"] == 0 < trained(model)["action"]


def test_without_rates_of_their_own_there_are_matrices_and_vectors_in_the_model_s_order() -> None:
    model = tiny_model()
    found = groups(model.named_parameters(), ExpertsConfig())
    assert [(group.decays, group.lr_scale) for group in found] == [(True, 1.0), (False, 1.0)]
    weights = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in weights if p.dim() > 1], [p for p in weights if p.dim() <= 1]
    for group, members in zip(found, (matrices, vectors), strict=True):
        assert [id(p) for p in group.params] == [id(p) for p in members]


def test_an_expert_of_its_own_rate_is_in_groups_of_its_own() -> None:
    model = tiny_model()
    slow, fast = ExpertTraining(lr_scale=0.1), ExpertTraining(lr_scale=3.0)
    found = groups(model.named_parameters(), ExpertsConfig(vision=slow, understanding=slow, action=fast))
    scales = {id(p): group.lr_scale for group in found for p in group.params}
    assert len(found) == 6 and all(len({p.dim() > 1 for p in group.params}) == 1 for group in found)
    expected = {"vision": 0.1, "understanding": 0.1, "generation": 1.0, "action": 3.0}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            assert scales.pop(id(weight)) == expected[expert_of(name)], name
    assert not scales


def test_a_frozen_expert_is_in_no_group_and_no_group_is_empty() -> None:
    model = tiny_model()
    experts = ExpertsConfig(vision=ExpertTraining(lr_scale=0.1, frozen=True))
    freeze(model, experts)
    assert {group.lr_scale for group in groups(model.named_parameters(), experts)} == {1.0}

"""Each backbone family beside the Hugging Face model that it is made of: names of weights, and the forward."""

from dataclasses import replace

import pytest
import torch
from tests.model.stock import AS_STOCK, stock_model, stock_states
from tests.model.tiny import FAMILIES, tiny_batch, tiny_config
from torch import Tensor

from vla_mot.model.model import VlaMotModel
from vla_mot.nn.masks import UNDERSTANDING, TokenLayout, build_attn_mask
from vla_mot.nn.rope import rotation

OURS = ("understanding.", "stack.norms.understanding.")


def of_understanding(name: str) -> bool:
    return name.startswith(OURS) or ".experts.understanding." in name


def renamed(model: VlaMotModel, stock: dict[str, Tensor]) -> dict[str, Tensor]:
    """The stock weights under our names; two names of one weight must hold the same numbers."""
    found: dict[str, Tensor] = {}
    for key, value in stock.items():
        name = model.understanding.stock_key(key)
        assert name is not None, key
        assert torch.equal(found.setdefault(name, value), value), key
    return found


def like_stock(family: str, **options: object) -> VlaMotModel:
    return VlaMotModel(tiny_config(family, backbone={**AS_STOCK[family], **options})).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stock_checkpoint_fills_every_understanding_weight_and_no_other(family: str) -> None:
    model, stock = like_stock(family), stock_model(family)
    weights = renamed(model, stock.state_dict())
    assert weights.keys() == {name for name in model.state_dict() if of_understanding(name)}
    model.load_state_dict(weights, strict=False)  # shapes fit
    assert torch.equal(
        model.understanding.embed_tokens.weight, stock.model.language_model.embed_tokens.weight
    )


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_understanding_expert_alone_equals_the_stock_forward(family: str) -> None:
    """Causal, with DeepStack where the family has it, absent cameras and padded text included."""
    model, stock, observation = like_stock(family), stock_model(family), tiny_batch().observation
    observation = replace(observation, view_mask=observation.view_mask.clone())
    observation.view_mask[0, 0] = False
    model.load_state_dict(renamed(model, stock.state_dict()), strict=False)
    seen, geometry = model._understand(observation), model.understanding.geometry
    assert len(seen.deepstack) == (2 if family == "qwen3_vl" else 0)
    mask = build_attn_mask(TokenLayout.of(UNDERSTANDING, seen.valid, causal=True))
    turn = rotation(seen.positions, geometry.head_dim, geometry.rope)
    states, _ = model.stack(
        {"understanding": seen.embeddings},
        turn,
        mask,
        outputs=("understanding",),
        injected={"understanding": seen.deepstack},
    )
    theirs = stock_states(stock, model.understanding, observation, seen.positions)
    assert seen.valid.sum() < seen.valid.numel()
    torch.testing.assert_close(states["understanding"][seen.valid], theirs[seen.valid], rtol=0, atol=1e-5)
    # The same numbers enter the whole sequence: later experts read the keys of these states.
    tokens = model.prefix_tokens(observation)
    together, _ = model._run(tokens, tokens.layout, outputs=("understanding", "generation"))
    torch.testing.assert_close(together["understanding"][seen.valid], theirs[seen.valid], rtol=0, atol=1e-5)


@torch.no_grad()
def test_causality_and_deepstack_each_change_what_later_tokens_become() -> None:
    observation, answers = tiny_batch().observation, []
    weights = like_stock("qwen3_vl").state_dict()
    for causal in (False, True):
        for deepstack in (False, True):
            model = like_stock("qwen3_vl", causal=causal, deepstack=deepstack)
            model.load_state_dict(weights)
            answers.append(model.prefill(observation).foresight)
    for i, one in enumerate(answers):
        assert all(not torch.allclose(one, other, atol=1e-3) for other in answers[i + 1 :])


LAYER = "stack.layers.3.experts.understanding.self_attn.q_proj.weight"
SPELLINGS = {
    "qwen3_vl": [
        ("model.visual.blocks.0.attn.qkv.bias", "understanding.visual.blocks.0.attn.qkv.bias"),
        ("visual.merger.norm.weight", "understanding.visual.merger.norm.weight"),
        ("model.language_model.layers.3.self_attn.q_proj.weight", LAYER),
        ("language_model.layers.3.self_attn.q_proj.weight", LAYER),
        ("model.language_model.norm.weight", "stack.norms.understanding.weight"),
        ("model.language_model.embed_tokens.weight", "understanding.embed_tokens.weight"),
        ("lm_head.weight", "understanding.embed_tokens.weight"),
        ("model.vision_tower.embeddings.cls_token", None),
        ("model.multi_modal_projector.linear_1.weight", None),
        ("lm_head.bias", None),
    ],
    "internvl3": [
        ("vision_tower.embeddings.cls_token", "understanding.vision_tower.embeddings.cls_token"),
        (
            "model.vision_tower.encoder.layer.0.lambda_1",
            "understanding.vision_tower.encoder.layer.0.lambda_1",
        ),
        ("multi_modal_projector.linear_1.weight", "understanding.multi_modal_projector.linear_1.weight"),
        ("language_model.model.layers.3.self_attn.q_proj.weight", LAYER),
        ("model.language_model.layers.3.self_attn.q_proj.weight", LAYER),
        ("model.language_model.model.layers.3.self_attn.q_proj.weight", LAYER),
        ("language_model.model.norm.weight", "stack.norms.understanding.weight"),
        ("model.language_model.embed_tokens.weight", "understanding.embed_tokens.weight"),
        ("language_model.lm_head.weight", "understanding.lm_head.weight"),
        ("lm_head.weight", "understanding.lm_head.weight"),
        ("model.visual.blocks.0.attn.qkv.bias", None),
        ("model.layers.3.self_attn.q_proj.weight", None),
    ],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_spelling_of_a_stock_name_is_known(family: str) -> None:
    understanding = like_stock(family).understanding
    for theirs, ours in SPELLINGS[family]:
        assert understanding.stock_key(theirs) == ours, theirs


def test_a_tied_head_is_the_embedding() -> None:
    tied = like_stock("internvl3", tied=True)
    assert tied.understanding.stock_key("lm_head.weight") == "understanding.embed_tokens.weight"
    assert "understanding.lm_head.weight" not in tied.state_dict()

import math

import pytest
import torch
from tests.nn.small import COUNTS, GEOMETRY, by_block, by_expert, redraw, small_stack, small_tokens
from torch import Tensor
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from vla_mot.errors import ConfigError
from vla_mot.nn.attention import attend
from vla_mot.nn.expert import ExpertConfig, ExpertLayer, Geometry
from vla_mot.nn.masks import ACTION, STATE, UNDERSTANDING, TokenLayout, build_attn_mask
from vla_mot.nn.mot import JointTransformer
from vla_mot.nn.rope import RopeConfig, rotation

ALL = ("understanding", "generation", "action")
PAIRS = [(early, late) for early in COUNTS for late in COUNTS if early < late]


def run(stack: JointTransformer, blocks: dict[int, Tensor], layout: TokenLayout, positions: Tensor):
    turn = rotation(positions, GEOMETRY.head_dim, GEOMETRY.rope)
    states, cache = stack(by_expert(blocks), turn, build_attn_mask(layout), outputs=ALL)
    return by_block(states), cache


# ---- leakage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("early", "late"), PAIRS)
def test_a_later_block_changes_no_earlier_output_at_all(early: int, late: int) -> None:
    stack, (blocks, layout, positions) = small_stack(), small_tokens()
    before, _ = run(stack, blocks, layout, positions)
    changed, _ = run(stack, {**blocks, late: blocks[late] * -3 + 1}, layout, positions)
    assert torch.equal(before[early], changed[early])
    assert not torch.equal(before[late], changed[late])


@pytest.mark.parametrize(("early", "late"), PAIRS)
def test_gradients_flow_only_from_earlier_to_later_blocks(early: int, late: int) -> None:
    stack, (blocks, layout, positions) = small_stack(), small_tokens()
    blocks = {block: tokens.requires_grad_() for block, tokens in blocks.items()}
    states, _ = run(stack, blocks, layout, positions)
    (leak,) = torch.autograd.grad(states[early].square().sum(), blocks[late], retain_graph=True)
    (flow,) = torch.autograd.grad(states[late].square().sum(), blocks[early])
    assert torch.count_nonzero(leak) == 0
    assert flow.abs().max() > 1e-4


def test_padded_tokens_change_no_real_token_and_get_no_gradient() -> None:
    stack, (blocks, layout, positions) = small_stack(), small_tokens()
    blocks = {block: tokens.requires_grad_() for block, tokens in blocks.items()}
    spans = dict(zip(blocks, layout.valid.split(list(COUNTS.values()), dim=1), strict=True))
    before, _ = run(stack, blocks, layout, positions)
    other = {b: torch.where(spans[b][..., None], x, 50.0).detach() for b, x in blocks.items()}
    after, _ = run(stack, other, layout, positions)
    for block, valid in spans.items():
        assert torch.equal(before[block][valid], after[block][valid])
    total = torch.stack([before[b][valid].square().sum() for b, valid in spans.items()]).sum()
    for gradient, valid in zip(torch.autograd.grad(total, blocks.values()), spans.values(), strict=True):
        assert torch.count_nonzero(gradient[~valid]) == 0
        assert (gradient[valid].abs().amax(-1) > 0).all()


def test_a_query_without_keys_gets_zeros_and_no_gradient() -> None:
    query, key, value = (torch.randn(1, 3, heads, 8, requires_grad=True) for heads in (4, 2, 2))
    mask = torch.tensor([[[True, True, False], [False, False, False], [True, False, False]]])
    out = attend(query, key, value, mask)
    assert torch.count_nonzero(out[:, 1]) == 0
    assert (out[:, 0] != 0).all()
    out.square().sum().backward()
    assert torch.count_nonzero(query.grad[:, 1]) == 0
    assert torch.count_nonzero(key.grad[:, 2]) + torch.count_nonzero(value.grad[:, 2]) == 0
    assert all(bool(x.grad.isfinite().all()) for x in (query, key, value))


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
def test_bfloat16_without_gradients_is_attention_too(heads: tuple[int, int]) -> None:
    """A CPU takes another way there; it is as near to exact attention as torch's own kernel."""
    exact = [
        torch.randn(2, tokens, count, 8)
        for tokens, count in zip((3, 5, 5), (heads[0], *heads[1:] * 2), strict=True)
    ]
    narrow = [x.bfloat16() for x in exact]
    expected = attend(*(x.double() for x in narrow), None)
    theirs = attend(*narrow, None)
    with torch.no_grad():
        ours = attend(*narrow, None)
    assert ours.shape == expected.shape and ours.dtype == torch.bfloat16
    assert (ours - expected).abs().max() < 2 * (theirs - expected).abs().max()
    assert not torch.equal(ours, theirs), "the other way was not taken"


# ---- parity -----------------------------------------------------------------------------------------------------


def rms(x: Tensor, norm: torch.nn.Module) -> Tensor:
    return x / math.sqrt(float(x.square().mean()) + 1e-6) * norm.weight


def turned(head: Tensor, position: Tensor) -> Tensor:
    """Rotate one head of one token at its (time, height, width), pair by pair."""
    half, out = head.shape[0] // 2, head.clone()
    axis = [0, 1, 2, 0]  # two frequencies of time, one of height, one of width, interleaved
    for f in range(half):
        angle = float(position[axis[f]]) / GEOMETRY.rope.base ** (f / half)
        a, b = head[f], head[f + half]
        out[f] = a * math.cos(angle) - b * math.sin(angle)
        out[f + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def naive_stack(stack: JointTransformer, tokens: list[tuple[str, Tensor]], positions: Tensor, may) -> list:
    """One sample, one token and one head at a time. tokens: (expert, embedding). may(i, j): i attends to j."""
    d, repeats = GEOMETRY.head_dim, GEOMETRY.num_heads // GEOMETRY.num_kv_heads
    for layer in stack.layers:
        heads = []
        for i, (name, x) in enumerate(tokens):
            expert = layer.experts[name]
            attention, normed = expert.self_attn, rms(x, expert.input_layernorm)
            q = [turned(rms(h, attention.q_norm), positions[:, i]) for h in attention.q_proj(normed).split(d)]
            k = [turned(rms(h, attention.k_norm), positions[:, i]) for h in attention.k_proj(normed).split(d)]
            heads.append((q, k, attention.v_proj(normed).split(d)))
        after = []
        for i, (name, x) in enumerate(tokens):
            seen, gathered = [j for j in range(len(tokens)) if may(i, j)], []
            for h in range(GEOMETRY.num_heads):
                weights = [math.exp(float(heads[i][0][h] @ heads[j][1][h // repeats]) / d**0.5) for j in seen]
                mixed = torch.zeros(d, dtype=x.dtype)
                for j, weight in zip(seen, weights, strict=True):
                    mixed += weight / sum(weights) * heads[j][2][h // repeats]
                gathered.append(mixed)
            expert = layer.experts[name]
            x = x + expert.self_attn.o_proj(torch.cat(gathered))
            inner, mlp = rms(x, expert.post_attention_layernorm), expert.mlp
            gate = mlp.gate_proj(inner)
            after.append((name, x + mlp.down_proj(gate * torch.sigmoid(gate) * mlp.up_proj(inner))))
        tokens = after
    return [rms(x, stack.norms[name]) for name, x in tokens]


@torch.no_grad()
def test_the_joint_stack_equals_a_loop_over_tokens_and_heads() -> None:
    stack = small_stack().double()
    blocks, layout, positions = small_tokens()
    blocks = {block: tokens.double() for block, tokens in blocks.items()}
    states, _ = run(stack, blocks, layout, positions)
    hidden, joined = by_expert(blocks), torch.cat([layout.block], 0)
    for row in range(2):
        tokens = [(name, x) for name, sequence in hidden.items() for x in sequence[row]]
        valid = layout.valid[row]
        expected = naive_stack(
            stack, tokens, positions[:, row], lambda i, j, v=valid: v[i] and v[j] and joined[j] <= joined[i]
        )
        ours = [x for block in COUNTS for x in states[block][row]]
        for mine, theirs in zip(ours, expected, strict=True):
            assert torch.allclose(mine, theirs, atol=2e-6)  # angles are float32 here and float64 there


def hf_text_model() -> Qwen3VLTextModel:
    config = Qwen3VLTextConfig(
        vocab_size=10,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 1, 1]},
    )
    model = Qwen3VLTextModel(config).eval()
    redraw(model)
    return model


@torch.no_grad()
def test_understanding_alone_equals_the_stock_causal_text_model() -> None:
    stock, generator = hf_text_model(), torch.Generator().manual_seed(2)
    stack = JointTransformer(
        GEOMETRY, {"understanding": list(stock.layers)}, {"understanding": stock.norm}
    ).eval()
    embeddings = torch.randn(2, 7, 32, generator=generator)
    positions = torch.randint(0, 30, (3, 2, 7), generator=generator)
    valid = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    mask = build_attn_mask(TokenLayout.of(UNDERSTANDING, valid, causal=True))
    turn = rotation(positions, GEOMETRY.head_dim, GEOMETRY.rope)
    ours, _ = stack({"understanding": embeddings}, turn, mask, outputs=ALL)
    theirs = stock(
        inputs_embeds=embeddings, position_ids=positions, attention_mask=valid.long(), use_cache=False
    )
    assert torch.allclose(ours["understanding"][valid], theirs.last_hidden_state[valid], atol=1e-5)


@torch.no_grad()
def test_an_expert_layer_with_the_stock_weights_computes_the_stock_layer() -> None:
    stock, x = hf_text_model(), torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(3))
    layer = ExpertLayer(GEOMETRY, ExpertConfig(32, 48))
    layer.load_state_dict(stock.layers[0].state_dict())  # the same names and shapes, none left over
    positions = torch.arange(6).expand(3, 2, 6)
    turn = rotation(positions, GEOMETRY.head_dim, GEOMETRY.rope)
    single = Geometry(1, 4, 2, 8, GEOMETRY.rope)
    stack = JointTransformer(single, {"action": [layer]}, {"action": torch.nn.Identity()})
    everyone = torch.ones(2, 6, 6, dtype=torch.bool)
    ours, _ = stack({"action": x}, turn, everyone, outputs=("action",))
    theirs = stock.layers[0](x, position_embeddings=(turn.cos, turn.sin), attention_mask=everyone[:, None])
    assert torch.allclose(ours["action"], theirs, atol=1e-5)


# ---- identity ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_cached_prefix_equals_the_whole_sequence_and_is_never_written() -> None:
    stack, (blocks, layout, positions) = small_stack(), small_tokens()
    whole, full_cache = run(stack, blocks, layout, positions)
    split = len(layout) - COUNTS[ACTION]
    prefix = TokenLayout(
        layout.block[:split], layout.group[:split], layout.causal[:split], layout.valid[:, :split]
    )
    turn = rotation(positions, GEOMETRY.head_dim, GEOMETRY.rope)
    hidden = by_expert(blocks) | {"action": blocks[STATE]}
    first, cache = stack(hidden, turn[:split], build_attn_mask(prefix), outputs=("generation",))
    kept = [tensor.clone() for tensor in cache.keys + cache.values]
    mask = build_attn_mask(layout, num_queries=COUNTS[ACTION])
    later, grown = stack({"action": blocks[ACTION]}, turn[split:], mask, outputs=("action",), kv_cache=cache)
    assert list(first) == ["generation"]
    assert len(cache) == split and len(grown) == len(layout)
    assert torch.allclose(later["action"], whole[ACTION], atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(kept, cache.keys + cache.values, strict=True))
    for mine, theirs in zip(grown.keys + grown.values, full_cache.keys + full_cache.values, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


@torch.no_grad()
def test_outputs_that_nobody_asked_for_change_nothing_else() -> None:
    stack, (blocks, layout, positions) = small_stack(), small_tokens()
    turn, mask = rotation(positions, GEOMETRY.head_dim, GEOMETRY.rope), build_attn_mask(layout)
    everything, _ = stack(by_expert(blocks), turn, mask, outputs=ALL)
    for name in ALL:
        alone, _ = stack(by_expert(blocks), turn, mask, outputs=(name,))
        assert list(alone) == [name]
        assert torch.allclose(alone[name], everything[name], atol=1e-6)


@torch.no_grad()
def test_the_last_layer_of_an_expert_that_nobody_asked_for_stops_at_its_keys_and_values() -> None:
    stack, (blocks, layout, positions) = small_stack(), small_tokens()
    ran: list[tuple[int, str]] = []
    for i, layer in enumerate(stack.layers):
        for name in ALL:
            layer.experts[name].mlp.register_forward_pre_hook(lambda *_, at=(i, name): ran.append(at))
    turn, mask = rotation(positions, GEOMETRY.head_dim, GEOMETRY.rope), build_attn_mask(layout)
    stack(by_expert(blocks), turn, mask, outputs=("generation",))
    assert ran == [(0, name) for name in ALL] + [(1, "generation")]


@torch.no_grad()
def test_a_cache_that_is_not_kept_changes_nothing_else() -> None:
    stack, (blocks, layout, positions) = small_stack(), small_tokens()
    turn, mask = rotation(positions, GEOMETRY.head_dim, GEOMETRY.rope), build_attn_mask(layout)
    kept, full = stack(by_expert(blocks), turn, mask, outputs=ALL)
    states, empty = stack(by_expert(blocks), turn, mask, outputs=ALL, keep_cache=False)
    assert len(full) == len(layout) and len(empty) == 0
    assert all(torch.equal(kept[name], states[name]) for name in ALL)


@torch.no_grad()
def test_what_is_injected_after_a_layer_is_added_there() -> None:
    stack, (blocks, layout, positions) = small_stack(), small_tokens()
    turn, mask = rotation(positions, GEOMETRY.head_dim, GEOMETRY.rope), build_attn_mask(layout)
    hidden, generator = by_expert(blocks), torch.Generator().manual_seed(4)
    added = [torch.randn(hidden["understanding"].shape, generator=generator) for _ in range(2)]

    def step(i: int, hidden: dict) -> dict:
        return stack.layers[i](hidden, turn, mask, None, ALL)[0]

    by_hand = step(0, hidden)
    by_hand = step(1, {**by_hand, "understanding": by_hand["understanding"] + added[0]})
    by_hand["understanding"] = by_hand["understanding"] + added[1]
    states, _ = stack(hidden, turn, mask, outputs=ALL, injected={"understanding": added})
    for name in ALL:
        assert torch.equal(states[name], stack.norms[name](by_hand[name]))
    plain, _ = stack(hidden, turn, mask, outputs=ALL)
    nothing, _ = stack(hidden, turn, mask, outputs=ALL, injected={"understanding": ()})
    assert not torch.allclose(plain["action"], states["action"], atol=1e-3)
    assert all(torch.equal(plain[name], nothing[name]) for name in ALL)
    # After the last layer, where nobody asked for the understanding's states, there is nothing to add to.
    fewer, _ = stack(hidden, turn, mask, outputs=("action",), injected={"understanding": added})
    assert torch.allclose(fewer["action"], states["action"], atol=1e-6)


# ---- faults -----------------------------------------------------------------------------------------------------


def test_heads_that_cannot_share_kv_heads_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"4 heads cannot share 3 KV heads"):
        Geometry(2, 4, 3, 8, RopeConfig(100.0))


def test_an_expert_with_another_number_of_layers_is_refused() -> None:
    with pytest.raises(AssertionError, match="action has 1 layers, not 2"):
        JointTransformer(GEOMETRY, {"action": [ExpertLayer(GEOMETRY, ExpertConfig(16, 32))]}, {})

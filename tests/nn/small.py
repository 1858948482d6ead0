"""A stack of three experts of different widths, two layers each, with weights large enough to notice mistakes."""

import torch
from torch import Tensor, nn

from vla_mot.nn.expert import ExpertConfig, ExpertLayer, Geometry
from vla_mot.nn.masks import ACTION, GENERATION, STATE, UNDERSTANDING, TokenLayout
from vla_mot.nn.mot import JointTransformer
from vla_mot.nn.rope import RopeConfig

GEOMETRY = Geometry(2, num_heads=4, num_kv_heads=2, head_dim=8, rope=RopeConfig(100.0, (2, 1, 1)))
WIDTHS = {"understanding": (32, 48), "generation": (24, 40), "action": (16, 32)}
# Tokens per block, in block order; the action expert holds the state and the actions.
COUNTS = {UNDERSTANDING: 5, GENERATION: 4, STATE: 1, ACTION: 3}


def redraw(module: nn.Module, seed: int = 0) -> None:
    """Random weights: matrices of unit gain, norms around 1, biases not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=generator).to(weight)
            if weight.dim() > 1:
                weight.copy_(noise * weight[0].numel() ** -0.5)
            else:
                weight.copy_(0.2 * noise + float("norm" in name and name.endswith("weight")))


def small_stack(seed: int = 0) -> JointTransformer:
    layers: dict[str, list[nn.Module]] = {}
    for name, sizes in WIDTHS.items():
        layers[name] = [ExpertLayer(GEOMETRY, ExpertConfig(*sizes)) for _ in range(GEOMETRY.num_layers)]
    norms = {name: nn.RMSNorm(sizes[0], eps=1e-6) for name, sizes in WIDTHS.items()}
    stack = JointTransformer(GEOMETRY, layers, norms)
    redraw(stack, seed)
    return stack


def small_tokens(batch: int = 2, seed: int = 1) -> tuple[dict[int, Tensor], TokenLayout, Tensor]:
    """Per block its embeddings `(B, S, D_e)`; their layout with some padding; positions `(3, B, S)`."""
    generator = torch.Generator().manual_seed(seed)
    widths = {UNDERSTANDING: 32, GENERATION: 24, STATE: 16, ACTION: 16}
    blocks = {b: torch.randn(batch, n, widths[b], generator=generator) for b, n in COUNTS.items()}
    valid = {b: torch.ones(batch, n, dtype=torch.bool) for b, n in COUNTS.items()}
    valid[UNDERSTANDING][0, -2:] = False
    valid[GENERATION][-1, :2] = False
    layout = TokenLayout.concat([TokenLayout.of(b, valid[b]) for b in COUNTS])
    positions = torch.randint(0, 20, (3, batch, len(layout)), generator=generator)
    return blocks, layout, positions


def by_expert(blocks: dict[int, Tensor]) -> dict[str, Tensor]:
    return {
        "understanding": blocks[UNDERSTANDING],
        "generation": blocks[GENERATION],
        "action": torch.cat((blocks[STATE], blocks[ACTION]), dim=1),
    }


def by_block(states: dict[str, Tensor]) -> dict[int, Tensor]:
    return {
        UNDERSTANDING: states["understanding"],
        GENERATION: states["generation"],
        STATE: states["action"][:, :1],
        ACTION: states["action"][:, 1:],
    }

"""A model with all parts at tiny size, and a batch that holds every kind of masked place."""

from dataclasses import replace
from typing import Any

import torch
from tests.nn.small import redraw
from torch import Tensor

from vla_mot.batch import Batch, Observation
from vla_mot.model.config import ModelConfig
from vla_mot.model.model import VlaMotModel
from vla_mot.nn.expert import ExpertConfig

VIEWS, TEXT, CHUNK, STATE_DIM, ACTION_DIM, REAL_ACTION_DIM = 3, 6, 4, 5, 5, 3
PAD, IMAGE_START, IMAGE_END = 256, 257, 258


def backbone_options(family: str, **changes: Any) -> dict[str, Any]:
    """Two layers of width 32; 32×32 pixels give 4 picture tokens per view."""
    shared = {
        "type": family,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "vocab_size": 260,
        "rope_base": 100.0,
        "image_size": [32, 32],
        "text_length": TEXT,
        "tokenizer": "byte",
        "pad_token_id": PAD,
    }
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 8}
    own: dict[str, dict[str, Any]] = {
        "qwen3_vl": {
            "head_dim": 8,
            "mrope_sections": [2, 1, 1],
            "vision": {**vision, "num_position_embeddings": 36, "deepstack_layers": [0]},
            "vision_start_token_id": IMAGE_START,
            "vision_end_token_id": IMAGE_END,
        },
        "internvl3": {
            "vision": vision,
            "image_start_token_id": IMAGE_START,
            "image_end_token_id": IMAGE_END,
        },
    }
    return {**shared, **own[family], **changes}


FAMILIES = ("qwen3_vl", "internvl3")


def tiny_config(family: str = "qwen3_vl", **changes: Any) -> ModelConfig:
    """Two layers of three widths; 8 generation tokens per view."""
    backbone = backbone_options(family)
    config = ModelConfig(
        backbone=backbone,
        foresight={"type": "dct", "image_size": [32, 32]},
        generation=ExpertConfig(24, 40),
        action=ExpertConfig(16, 32),
        num_views=VIEWS,
        view_size=(32, 32),
        offset_frames=3,
        foresight_stride=2,
        chunk_size=CHUNK,
        max_state_dim=STATE_DIM,
        max_action_dim=ACTION_DIM,
    )
    return replace(config, **changes)


def tiny_model(seed: int = 0, family: str = "qwen3_vl", **changes: Any) -> VlaMotModel:
    """Weights of unit gain, so that a mistake anywhere is seen everywhere."""
    model = VlaMotModel(tiny_config(family, **changes))
    redraw(model, seed)
    return model


def tiny_batch(seed: int = 0) -> Batch:
    """Four samples: nothing masked; no middle camera and a short episode; no last camera and no actions (human
    video); padded text, padded action dimensions and a future outside the episode."""
    generator = torch.Generator().manual_seed(seed)
    shape = (4, VIEWS, 2, 3, 32, 32)
    view_mask = torch.ones(4, VIEWS, dtype=torch.bool)
    view_mask[1, 1] = view_mask[2, 2] = False
    token_mask = torch.ones(4, TEXT, dtype=torch.bool)
    token_mask[1, 2:] = token_mask[3, 4:] = False
    action_mask = torch.zeros(4, CHUNK, ACTION_DIM, dtype=torch.bool)
    action_mask[0] = True
    action_mask[1, :2, :REAL_ACTION_DIM] = True
    action_mask[3, :, :REAL_ACTION_DIM] = True
    future_mask = view_mask.clone()
    future_mask[3] = False
    tokens = torch.randint(0, 256, (4, TEXT), generator=generator)
    return Batch(
        observation=Observation(
            images=torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
            view_mask=view_mask,
            state=torch.randn(4, STATE_DIM, generator=generator),
            token_ids=torch.where(token_mask, tokens, PAD),
            token_mask=token_mask,
        ),
        future=torch.randint(0, 256, (4, VIEWS, 3, 32, 32), generator=generator, dtype=torch.uint8),
        future_mask=future_mask,
        actions=torch.randn(4, CHUNK, ACTION_DIM, generator=generator) * action_mask,
        action_mask=action_mask,
        index=torch.arange(4),
    )


def tiny_noise(batch: Batch, draws: int = 1, seed: int = 9) -> tuple[Tensor, Tensor]:
    """Noise `(B, K, L, A)` and noise levels `(B, K)`."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch.batch_size, draws, CHUNK, ACTION_DIM, generator=generator)
    return noise, torch.rand(batch.batch_size, draws, generator=generator) * 0.9 + 0.05


def labelled(batch: Batch) -> Batch:
    """The same batch with every step and dimension of every chunk real."""
    actions = torch.randn(batch.actions.shape, generator=torch.Generator().manual_seed(3))
    return replace(batch, actions=actions, action_mask=torch.ones_like(batch.action_mask))


def with_observation(batch: Batch, **changes: Tensor) -> Batch:
    return replace(batch, observation=replace(batch.observation, **changes))

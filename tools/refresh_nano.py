"""Makes the nano checkpoint of tests/goldens/nano anew: a complete policy, small enough to be committed.

    python tools/refresh_nano.py

Run it when the checkpoint's format changes on purpose, never to make a failing test pass: its golden answer is what
this library once computed, and later versions must compute it still.
"""

from pathlib import Path

import torch

from vla_mot.hub.spec import PolicySpec, SamplerConfig
from vla_mot.infer.policy import Policy
from vla_mot.model.config import ModelConfig
from vla_mot.model.model import VlaMotModel
from vla_mot.nn.expert import ExpertConfig
from vla_mot.robots.catalog import find_embodiment
from vla_mot.robots.normalization import FeatureStatistics, Statistics
from vla_mot.robots.robot import Robot

FOLDER = Path(__file__).parents[1] / "tests" / "goldens" / "nano"
SEED = 20261121


def model_config() -> ModelConfig:
    """Three experts of different widths; every kind of weight, and little of each."""
    return ModelConfig(
        backbone={
            "type": "qwen3_vl",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_layers": 2,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_dim": 8,
            "rope_base": 10000.0,
            "mrope_sections": [2, 1, 1],
            "vocab_size": 260,
            "tokenizer": "byte",
            "pad_token_id": 256,
            "vision_start_token_id": 257,
            "vision_end_token_id": 258,
            "text_length": 20,
            "image_size": [32, 32],
            "vision": {
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_heads": 2,
                "patch_size": 8,
                "num_position_embeddings": 16,
                "deepstack_layers": [],
            },
        },
        foresight={"type": "dct", "image_size": [32, 32]},
        generation=ExpertConfig(24, 32),
        action=ExpertConfig(16, 24),
        view_size=(32, 32),
        offset_frames=3,
        foresight_stride=2,
        chunk_size=6,
        max_state_dim=6,
        max_action_dim=5,
    )


def robot() -> Robot:
    """The conveyor robot with round numbers as statistics."""
    body = find_embodiment("conveyor")
    assert body is not None
    return Robot(body, Statistics(body.name, "delta", 6, _numbers(body.state_dim), _numbers(body.action_dim)))


def _numbers(width: int) -> FeatureStatistics:
    mean = torch.linspace(-0.1, 0.2, width)
    std = torch.linspace(0.05, 0.4, width)
    return FeatureStatistics(mean, std, mean - 3 * std, mean + 3 * std, 1000)


def main() -> None:
    """Write the folder."""
    torch.manual_seed(SEED)
    model = VlaMotModel(model_config())
    policy = Policy(model, PolicySpec(model.config, (robot(),), SamplerConfig(4, 3)))
    policy.save_pretrained(FOLDER)


if __name__ == "__main__":
    main()

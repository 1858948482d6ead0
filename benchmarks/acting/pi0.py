"""LeRobot's `pi0` at its own size, beside ours: random weights, the same pictures, as many steps and actions.

Another model (it neither sees history nor foresees), so its time says what a policy of about this size costs there, not
how well either is written. Only where LeRobot is installed and a GPU is at hand.
"""

import importlib.util
import time
from typing import Any

import torch
from torch import Tensor

from acting.scene import CAMERA, Setting

_JOINTS, _WORDS = 14, 48


def why_not(device: str) -> str:
    """Why it is not measured; empty where it can be."""
    if importlib.util.find_spec("lerobot") is None:
        return "LeRobot is not installed"
    return "" if device.startswith("cuda") else "at its own size it needs a GPU"


def pi0_seconds(
    device: str, setting: Setting, repeats: int, warmup: int, **changes: Any
) -> tuple[list[float], int]:
    """Seconds of each call, from pictures on the host to actions on the host, and how many weights it has.

    changes: of its configuration.
    """
    policy = _policy(device, setting, **changes)
    batch = _batch(setting)
    found = []
    for _ in range(warmup + repeats):
        start = time.perf_counter()
        policy.predict_action_chunk(_moved(batch, device)).cpu()
        found.append(time.perf_counter() - start)
    return found[warmup:], sum(weight.numel() for weight in policy.parameters())


def _policy(device: str, setting: Setting, **changes: Any) -> Any:
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.pi0.configuration_pi0 import PI0Config
    from lerobot.policies.pi0.modeling_pi0 import PI0Policy

    pictures = {key: PolicyFeature(FeatureType.VISUAL, (3, *CAMERA)) for key in _cameras(setting)}
    config = PI0Config(
        input_features=pictures | {"observation.state": PolicyFeature(FeatureType.STATE, (_JOINTS,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (_JOINTS,))},
        num_inference_steps=setting.steps,
        device=device,
        **{"dtype": "bfloat16"} | changes,
    )
    with torch.device(device):
        return PI0Policy(config).eval()


def _cameras(setting: Setting) -> list[str]:
    return [f"observation.images.{number}" for number in range(setting.views)]


def _batch(setting: Setting) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = (setting.batch, 3, *CAMERA)
    pictures = {
        key: torch.randint(0, 256, pixels, generator=generator, dtype=torch.uint8)
        for key in _cameras(setting)
    }
    words = torch.randint(0, 1000, (setting.batch, _WORDS), generator=generator)
    return pictures | {
        "observation.state": torch.randn(setting.batch, _JOINTS, generator=generator),
        "observation.language.tokens": words,
        "observation.language.attention_mask": torch.ones_like(words, dtype=torch.bool),
    }


def _moved(batch: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    """On the device, pictures as floats in [0, 1]: what LeRobot's processors do before a policy."""
    there = {key: value.to(device) for key, value in batch.items()}
    return {key: value / 255 if value.dtype == torch.uint8 else value for key, value in there.items()}

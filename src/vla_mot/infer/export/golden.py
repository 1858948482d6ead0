"""What the stages and the policy answered when they were exported, so that anybody can replay it.

`golden.safetensors` holds, under the names of `vla_mot.infer.export.stages`, everything that the exported programs take
and give, and of the whole policy: `policy.images` `(B, V, 2, 3, H, W)` uint8 of the cameras that there are,
`policy.state` `(B, S)` and `policy.actions` `(B, L, D)` in physical units, `policy.instruction` (UTF-8 bytes),
`policy.noise` `(B, L, A)`, and of a policy that foresees `policy.foresight` `(B, V, C, h, w)`.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from vla_mot.errors import ConfigError
from vla_mot.infer.export.policy import ExportedPolicy
from vla_mot.infer.export.program_file import Pixels
from vla_mot.infer.export.stages import PREFIX
from vla_mot.infer.golden import record_golden
from vla_mot.infer.policy import Policy
from vla_mot.robots.images import resize_with_pad, to_unit
from vla_mot.robots.normalization import EPS


@torch.no_grad()
def record(
    policy: Policy, rows: int, *, pixels: Pixels, latents: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Make up a scene for each of `rows` robots; what the stages are given, and the policy's own part of the golden.

    A stage that reads another's results finds them there, too: they are computed by the model, not by programs.
    """
    alone = Policy(policy.model, replace(policy.spec, robots=(policy.robot,)), policy.robot)
    scene = _scene(alone)
    images, state, words = scene["policy.images"], scene["policy.state"], _words(scene)
    seeds, cameras = list(range(rows)), policy.robot.embodiment.present_cameras
    images = torch.stack([images.roll(3 * row, dims=-1) for row in seeds])
    state = state.expand(rows, -1).contiguous()
    noise = policy.noise(seeds, 0).to(policy.device)
    named = {key: images[:, place] for place, (_, key) in enumerate(cameras)}
    chunk = alone.predict(named, state, [words] * rows, noise)
    scene |= {"policy.images": images, "policy.state": state, "policy.noise": noise}
    scene |= {"policy.actions": chunk.actions}
    scene |= {} if chunk.foresight is None else {"policy.foresight": chunk.foresight}
    seen = alone.observe(named, state, [words] * rows)
    shown = to_unit(seen.images) if pixels == "float32" else seen.images
    given = {
        "images": shown,
        "view_mask": seen.view_mask,
        "state": seen.state,
        "token_ids": seen.token_ids,
        "token_mask": seen.token_mask,
        "noise": noise,
        "x": noise * 0.5,
        "noise_level": torch.linspace(0.9, 0.4, rows, device=noise.device),
    }
    if latents:
        given |= {"images": shown[:, :, 1].contiguous(), "frames": shown[:, :, 0].contiguous()}
        given["latents"] = policy.model.encode_frames(shown).float()
    return given, scene


@torch.no_grad()
def replay(exported: ExportedPolicy, golden: Mapping[str, Tensor]) -> dict[str, float]:
    """Run everything again: result → largest absolute difference, over real tokens and cameras; actions are normalized.

    Raises ConfigError for a recording of other programs.
    """
    found: dict[str, float] = {}
    try:
        for stage, told in exported.programs.facts.stages.items():
            given = {fact.name: golden[fact.name].to(exported.device) for fact in told.inputs}
            for name, result in exported.programs.run(stage, given).items():
                found[f"{stage}.{name}"] = _difference(name, result, golden)
        cameras = exported.robot.embodiment.present_cameras
        images = {key: golden["policy.images"][:, place] for place, (_, key) in enumerate(cameras)}
        state, rows = golden["policy.state"], len(golden["policy.state"])
        chunk = exported.predict(images, state, [_words(golden)] * rows, golden["policy.noise"])
    except KeyError as error:
        raise ConfigError(f"the golden file lacks {error}; it was recorded for other programs.") from error
    moved = (chunk.actions.cpu() - golden["policy.actions"]) / (exported.robot.statistics.action.std + EPS)
    return found | {"policy.actions": _largest(moved)}


def results(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As they are written: on the CPU, none sharing memory with another."""
    return {name: tensor.detach().cpu().clone() for name, tensor in named.items()}


def _scene(policy: Policy) -> dict[str, Tensor]:
    """One robot's pictures at the model's size, state and instruction."""
    recorded = {name.partition(":")[2]: tensor for name, tensor in record_golden(policy).items()}
    images = resize_with_pad(recorded["images"], *policy.spec.model.view_size)
    return {
        "policy.images": images.to(policy.device),
        "policy.state": recorded["state"][None].to(policy.device),
        "policy.instruction": recorded["instruction"],
    }


def _words(golden: Mapping[str, Tensor]) -> str:
    return bytes(golden["policy.instruction"].tolist()).decode()


def _difference(name: str, result: Tensor, golden: Mapping[str, Tensor]) -> float:
    """What nobody reads does not count: padded tokens' keys and values, absent cameras' pictures."""
    gap = (result.cpu().double() - golden[name].double()).abs()
    if name in PREFIX[:2] and "valid" in golden:
        gap = gap * golden["valid"][None, :, :, None, None]
    if name == "foresight":
        gap = gap * golden["view_mask"][:, :, None, None, None]
    return _largest(gap)


def _largest(gap: Tensor) -> float:
    return float(gap.abs().max())

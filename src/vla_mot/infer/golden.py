"""The golden observation of a checkpoint: a small made-up scene, and what the policy answered when it was saved.

`vla-mot verify` replays it, so that a pipeline that is broken anywhere between pixels and actions (another tokenizer,
other statistics, a library that resizes differently) is found before a robot moves.

Per robot, under the prefix `<embodiment>/<action mode>:` (`observation:` for a policy without robots), for one sample:
images `(V, 2, 3, h, w)` uint8 and state `(S,)` as the robot would give them, instruction (UTF-8 bytes), noise `(L, A)`,
and the answers: actions `(L, D)` in physical units (normalized `(L, A)` without a robot) and, of a model that foresees,
foresight `(V, C, h', w')`, float32.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vla_mot.batch import Observation
from vla_mot.errors import CheckpointError
from vla_mot.infer.policy import Policy
from vla_mot.keyed import keyed_normal
from vla_mot.robots.images import resize_with_pad, to_bytes
from vla_mot.robots.normalization import EPS

INSTRUCTION = "pick the red block"
_SIZE, _GRID = (
    (48, 64),
    (6, 8),
)  # pixels of the made-up pictures, and of the noise that they are blown up from
_STREAM = 11
_GIVEN = ("images", "state", "instruction", "noise")


@dataclass(frozen=True)
class Deviation:
    """Largest absolute difference of a replay: actions in normalized units, foresight, if any, in latent units."""

    robot: str
    actions: float
    foresight: float | None


def record_golden(policy: Policy) -> dict[str, Tensor]:
    """Make up a scene for every robot of the policy, and record the answers."""
    recorded: dict[str, Tensor] = {}
    for name, bound in _bound(policy).items():
        given = _made_up(bound)
        parts = given | _answer(bound, given)
        recorded |= {f"{name}:{part}": value.cpu() for part, value in parts.items()}
    return recorded


def replay_golden(policy: Policy, golden: Mapping[str, Tensor]) -> list[Deviation]:
    """Ask the policy again. Raises CheckpointError when the recording is of other robots or incomplete."""
    robots = _bound(policy)
    answers = ("actions",) if policy.model.generation is None else ("actions", "foresight")
    expected = {f"{name}:{part}" for name in robots for part in (*_GIVEN, *answers)}
    if expected != golden.keys():
        odd = sorted(expected ^ golden.keys())
        raise CheckpointError(
            f"the golden observation does not fit the policy: {', '.join(odd[:6])}; save it again."
        )
    for name in robots:
        told = golden[f"{name}:instruction"]
        if told.dtype != torch.uint8 or told.dim() != 1:
            raise CheckpointError(
                f"the golden observation's {name}:instruction must be bytes, (N,) uint8; got {tuple(told.shape)} "
                f"{told.dtype}; save it again."
            )
    found = []
    for name, bound in robots.items():
        answered = _answer(bound, {part: golden[f"{name}:{part}"] for part in _GIVEN})
        gaps = {part: _difference(ours, golden[f"{name}:{part}"]) for part, ours in answered.items()}
        moved, foreseen = gaps["actions"] / _action_scale(bound), gaps.get("foresight")
        found.append(Deviation(name, float(moved.max()), None if foreseen is None else float(foreseen.max())))
    return found


def _bound(policy: Policy) -> dict[str, Policy]:
    if not policy.spec.robots:
        return {"observation": policy}
    return {str(robot): Policy(policy.model, policy.spec, robot) for robot in policy.spec.robots}


def _made_up(policy: Policy) -> dict[str, Tensor]:
    """images, state, instruction and noise of one sample."""
    config = policy.spec.model
    if policy.spec.robots:
        views = len(policy.robot.embodiment.present_cameras)
        numbers = policy.robot.statistics.state
        state = numbers.mean + 0.5 * numbers.std * _random(1, numbers.mean.numel())
    else:
        views, state = config.num_views, _random(1, config.max_state_dim)
    coarse = _random(2, views, 2, 3, *_GRID).sigmoid().flatten(0, 1)
    fine = F.interpolate(coarse, size=_SIZE, mode="bilinear", align_corners=False).unflatten(0, (views, 2))
    return {
        "images": to_bytes(fine),
        "state": state,
        "instruction": torch.tensor(list(INSTRUCTION.encode()), dtype=torch.uint8),
        "noise": _random(3, config.chunk_size, config.max_action_dim),
    }


def _random(stream: int, *shape: int) -> Tensor:
    return keyed_normal(0, stream, _STREAM, torch.zeros(1, dtype=torch.int64), shape)[0]


@contextmanager
def _full_precision() -> Iterator[None]:
    """Without TensorFloat-32 on a GPU: who saves a checkpoint (lerobot-train, say) may have it on, who verifies not."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


@torch.no_grad()
@_full_precision()
def _answer(policy: Policy, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Actions `(L, D)` and, of a model that foresees, foresight `(V, C, h, w)` of one sample, float32 on the CPU."""
    device, instruction = policy.device, bytes(given["instruction"].tolist()).decode()
    # Answers are recorded to pictures that were rounded after resizing, as a cache of training frames rounds them.
    images = resize_with_pad(given["images"].to(device), *policy.spec.model.view_size)
    state = given["state"].to(device)[None]
    noise = given["noise"].to(device)[None]
    if policy.spec.robots:
        cameras = policy.robot.embodiment.present_cameras
        named = {key: images[place][None] for place, (_, key) in enumerate(cameras)}
        chunk = Policy(policy.model, policy.spec, policy.robot).predict(named, state, [instruction], noise)
        actions, foresight = chunk.actions, chunk.foresight
    else:
        config = policy.spec.model
        actions, foresight = policy.model.sample(
            _plain(policy, images, state, instruction),
            noise,
            policy.spec.sampler.num_steps,
            config.max_action_dim,
        )
    answers = {"actions": actions} | ({} if foresight is None else {"foresight": foresight})
    return {name: answer[0].float().cpu() for name, answer in answers.items()}


def _action_scale(policy: Policy) -> Tensor:
    """What one normalized unit of each action dimension is."""
    return policy.robot.statistics.action.std + EPS if policy.spec.robots else torch.ones(1)


def _plain(policy: Policy, images: Tensor, state: Tensor, instruction: str) -> Observation:
    """An observation in the model's own terms, of a robot that nobody knows: every camera there, no statistics."""
    ids, mask = policy.model.understanding.tokenize([instruction])
    return Observation(
        images=images[None],
        view_mask=torch.ones(1, len(images), dtype=torch.bool, device=state.device),
        state=state,
        token_ids=ids.to(state.device),
        token_mask=mask.to(state.device),
    )


def _difference(ours: Tensor, recorded: Tensor) -> Tensor:
    if ours.shape != recorded.shape:
        raise CheckpointError(
            f"the golden answer has shape {tuple(recorded.shape)}, the policy's {tuple(ours.shape)}; save it again."
        )
    return (ours - recorded).abs()

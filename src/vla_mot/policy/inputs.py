"""LeRobot's batch dictionaries in the policy's terms.

A batch maps feature names to tensors with a leading batch axis, `task` to B instructions and, in training,
`<feature>_is_pad` to flags of the time steps that lie outside the episode.

Legend: `B` batch, `V` camera slots, `T` 3 frames (t − m, t, t + m), `L` chunk steps, `D`/`S` real action and state
dims, `h`/`w` a camera's own pixels.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vla_mot.batch import Batch
from vla_mot.errors import ConfigError
from vla_mot.robots.images import resize_with_pad, to_bytes
from vla_mot.robots.processor import Processor

FRAMES = 3


def pictures(batch: Mapping[str, Any], processor: Processor) -> dict[str, Tensor]:
    """Image feature → pictures as they came: uint8, or LeRobot's floats in [0, 1]; any leading axes."""
    keys = [key for _, key in processor.embodiment.present_cameras]
    _require(batch, keys, processor)
    return {key: batch[key] for key in keys}


def state_now(batch: Mapping[str, Any], processor: Processor) -> Tensor:
    """The present state `(B, S)` float32 in physical units, of a batch without a time axis."""
    keys = [field.key for field in processor.embodiment.state]
    _require(batch, keys, processor)
    return torch.cat([batch[key].flatten(1).float() for key in keys], dim=1)


def instructions(batch: Mapping[str, Any], batch_size: int) -> list[str]:
    """B instructions; a single string is meant for all."""
    if "task" not in batch:
        raise ConfigError("the batch has no 'task': the policy needs the instruction as text.")
    task = batch["task"]
    tasks = [task] * batch_size if isinstance(task, str) else [str(text) for text in task]
    if len(tasks) != batch_size:
        raise ConfigError(f"the batch has {batch_size} samples and {len(tasks)} instructions.")
    return tasks


def training_batch(batch: Mapping[str, Any], processor: Processor) -> Batch:
    """Build the model's batch from windows with frames t − m, t, t + m and an action chunk.

    Raises ConfigError when a feature is missing or lacks its time axis.
    """
    embodiment = processor.embodiment
    # A dataset's floats are bytes over 255. Resized as bytes, they are what our own reader's caches hold.
    frames = {
        key: resize_with_pad(_to_uint8(images), *processor.image_size)
        for key, images in pictures(batch, processor).items()
    }
    _require(batch, [field.key for field in embodiment.state], processor)
    states = [_windows(batch, field.key, FRAMES)[:, 1] for field in embodiment.state]
    state = torch.cat(states, dim=1)
    size = state.shape[0]
    # All three frames go through the same resizing and slots; then the last one becomes the future.
    seen = processor.observation(
        {slot: _timed(frames[key], key) for slot, key in embodiment.present_cameras},
        state,
        instructions(batch, size),
    )
    future_mask = torch.zeros_like(seen.view_mask)
    for slot, key in embodiment.present_cameras:
        future_mask[:, slot] = ~_padding(batch, key)[:, -1]
    actions, step_mask = _chunk(batch, processor)
    index = batch["index"].flatten() if "index" in batch else torch.arange(size, device=state.device)
    return processor.batch(
        replace(seen, images=seen.images[:, :, :2]),
        future=seen.images[:, :, 2],
        future_mask=future_mask,
        actions=actions,
        step_mask=step_mask,
        index=index,
        state=state,
    )


def _chunk(batch: Mapping[str, Any], processor: Processor) -> tuple[Tensor, Tensor]:
    """Actions `(B, L, D)` and the real steps `(B, L)`."""
    keys = [field.key for field in processor.embodiment.action]
    if keys != ["action"]:
        raise ConfigError(
            f"LeRobot reads chunks of the feature 'action' only, embodiment {processor.embodiment.name!r} has "
            f"{', '.join(keys)}; train it with `vla-mot posttrain`."
        )
    _require(batch, keys, processor)
    padding = _padding(batch, "action")
    actions = _windows(batch, "action", processor.statistics.chunk_size)
    if actions.shape[-1] != processor.embodiment.action_dim:
        raise ConfigError(
            f"the dataset's action has {actions.shape[-1]} dimensions, embodiment {processor.embodiment.name!r} "
            f"expects {processor.embodiment.action_dim}."
        )
    return actions, ~padding


def _windows(batch: Mapping[str, Any], key: str, steps: int) -> Tensor:
    """`(B, steps, D)` float32; LeRobot drops the last axis of features of one dimension."""
    value = batch[key].float()
    if value.dim() < 2 or value.shape[1] != steps:
        raise ConfigError(
            f"feature {key!r} has shape {tuple(value.shape)}; training needs {steps} time steps."
        )
    return value.reshape(value.shape[0], steps, -1)


def _timed(images: Tensor, key: str) -> Tensor:
    if images.dim() != 5 or images.shape[1] != FRAMES:
        raise ConfigError(
            f"feature {key!r} has shape {tuple(images.shape)}; training needs (B, {FRAMES}, 3, h, w): "
            "the frames of `observation_delta_indices`."
        )
    return images


def _padding(batch: Mapping[str, Any], key: str) -> Tensor:
    flag = f"{key}_is_pad"
    if flag not in batch:
        raise ConfigError(f"the batch has no {flag!r}; training needs LeRobot's padding flags.")
    return batch[flag].bool()


def _require(batch: Mapping[str, Any], keys: list[str], processor: Processor) -> None:
    missing = [key for key in keys if key not in batch]
    if missing:
        found = sorted(key for key in batch if key.startswith(("observation", "action")))
        raise ConfigError(
            f"embodiment {processor.embodiment.name!r} expects {', '.join(missing)}; the batch has "
            f"{', '.join(found) or 'no observation'}. --rename_map gives features other names."
        )


def _to_uint8(images: Tensor) -> Tensor:
    return images if images.dtype == torch.uint8 else to_bytes(images)

"""A policy in a person's words: what `vla-mot info` prints and a model card repeats."""

from vla_mot.hub.card import lasting
from vla_mot.hub.spec import SamplerConfig
from vla_mot.model.config import ModelConfig
from vla_mot.robots.embodiment import Field


def architecture(model: ModelConfig) -> dict[str, str]:
    """Name → text: experts, views, and the conventions that the weights were trained with."""
    habits = {
        "positions": model.positions,
        "padded dimensions and steps": "masked" if model.mask_padding else "noise in them, as released",
        "action loss over": f"{model.action_loss} places",
    }
    return {
        "backbone": f"{model.backbone['type']}, hidden {model.backbone.get('hidden_size', 'default')}",
        "experts": f"generation {model.generation.hidden_size}, action {model.action.hidden_size}",
        "views": f"{model.num_views} slots of {model.view_size[1]}×{model.view_size[0]} pixels",
        "conventions": ", ".join(f"{name}: {value}" for name, value in habits.items()),
    }


def foresight(model: ModelConfig, fps: float | None) -> str:
    """How far history and foresight lie from the present, and what they are pictures of."""
    if model.offset_seconds is not None:
        distance = f"{model.offset_seconds:g} s"
    else:
        distance = lasting(model.offset_frames, "frames", fps)
    return f"{distance} back and ahead, tokenizer {model.foresight['type']}"


def sampling(sampler: SamplerConfig) -> str:
    """How actions are drawn, and how many of them are acted on."""
    return f"{sampler.num_steps} Euler steps, {sampler.n_action_steps} actions of a chunk executed"


def dimensions(field: Field, *, delta: bool = True) -> str:
    """`x [m, delta] aperture [m]`. delta: whether the dimensions that may be relative are marked."""
    parts = (
        f"{name} [{unit}{', delta' if delta and relative else ''}]"
        for name, unit, relative in zip(field.names, field.units, field.delta, strict=True)
    )
    return " ".join(parts)

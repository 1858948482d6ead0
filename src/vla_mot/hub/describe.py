"""A policy in a person's words: what `vla-mot info` prints and a model card repeats."""

from collections.abc import Mapping
from typing import Any

from vla_mot.backbones.base import read_options
from vla_mot.hub.card import lasting
from vla_mot.hub.conventions import flat
from vla_mot.hub.spec import SamplerConfig
from vla_mot.model.config import ModelConfig
from vla_mot.nn.expert import ExpertConfig
from vla_mot.robots.embodiment import Field

# Options that no shape shows and that are no size: what they are decides what the weights mean.
_HABITS = (
    "rope_base", "rms_norm_eps", "scale_text", "causal", "deepstack", "image_start_token_id", "image_end_token_id",
    "vision.attention_bias",
)  # fmt: skip


def architecture(model: ModelConfig) -> dict[str, str]:
    """Name → text: experts, views, and the conventions that the weights were trained with."""
    habits = {
        "positions": model.positions,
        "padded dimensions and steps": "masked" if model.mask_padding else "noise in them, as released",
        "action loss over": f"{model.action_loss} places",
    }
    return {
        "backbone": f"{model.backbone['type']}, hidden {model.backbone.get('hidden_size', 'default')}",
        "computed": departures(model.backbone),
        "experts": f"generation {_width(model.generation)}, action {_width(model.action)}",
        "views": f"{model.num_views} slots of {model.view_size[1]}×{model.view_size[0]} pixels",
        "conventions": ", ".join(f"{name}: {value}" for name, value in habits.items()),
    }


def _width(expert: ExpertConfig | None) -> str:
    return "none" if expert is None else str(expert.hidden_size)


def departures(backbone: Mapping[str, Any]) -> str:
    """How the backbone computes otherwise than its family does: `rope_base 10000 (its family: 1000000)`."""
    mine, family = (flat(options) for options in read_options(backbone))
    told = [
        f"{name} {_value(mine[name])} (its family: {_value(family[name])})"
        for name in _HABITS
        if name in mine and _kind(name, mine[name]) != _kind(name, family[name])
    ]
    return ", ".join(told) or "as its family does"


def _kind(name: str, value: Any) -> Any:
    """Which token stands at an edge is the vocabulary's affair; that one does, is not."""
    return value is None if name.endswith("token_id") else value


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) and abs(value) < 1 else f"{value:.0f}"


def foresight(model: ModelConfig, fps: float | None) -> str:
    """How far history and foresight lie from the present, and what they are pictures of."""
    if model.foresight is None:
        return "none, and no history: there is no generation expert"
    if model.offset_seconds is not None:
        distance = f"{model.offset_seconds:g} s"
    else:
        distance = lasting(model.offset_frames, "frames", fps)
    replaced = "; history replaced by the present" if model.history == "present" else ""
    return f"{distance} back and ahead, tokenizer {model.foresight['type']}{replaced}"


def sampling(sampler: SamplerConfig) -> str:
    """How actions are drawn, and how many of them are acted on."""
    steps = f"{sampler.num_steps} {sampler.solver.capitalize()} steps"
    return f"{steps}, {sampler.n_action_steps} actions of a chunk executed"


def dimensions(field: Field, *, delta: bool = True) -> str:
    """`x [m, delta] aperture [m]`. delta: whether the dimensions that may be relative are marked."""
    parts = (
        f"{name} [{unit}{', delta' if delta and relative else ''}]"
        for name, unit, relative in zip(field.names, field.units, field.delta, strict=True)
    )
    return " ".join(parts)

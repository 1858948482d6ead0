"""What tensors do not show: whether weights compute in a model what they were trained to compute.

Weights of the right shapes load into a model with another rope base or scaled text, and mean something else there.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vla_mot.errors import CheckpointError
from vla_mot.model.config import ModelConfig
from vla_mot.model.model import VlaMotModel
from vla_mot.options import section

# What a model may be trained on with, since training changes what it is about: said, not refused.
_MAY_CHANGE = (
    "num_views", "view_size", "offset_frames", "offset_seconds", "history", "chunk_size", "mask_padding", "positions",
    "action_loss", "noise_level", "backbone.text_length", "backbone.tokenizer", "backbone.pad_token_id",
    "backbone.image_size", "foresight.image_size", "foresight.dtype",
)  # fmt: skip
_DEEPSTACK = "backbone.deepstack", "backbone.vision.deepstack_layers"


def require_conventions(model: VlaMotModel, trained: ModelConfig, source: object) -> list[str]:
    """Compare a model with the one that weights were trained in.

    Returns what changes from now on and may, as `name: before → now`. Raises CheckpointError naming everything that
    would make the weights compute something else. source: where they come from, for the message.
    """
    before, now = _options(trained, model), _options(model.config, model)
    if not (before.get(_DEEPSTACK[0]) or now.get(_DEEPSTACK[0])):  # then nobody reads there
        for options in (before, now):
            options.pop(_DEEPSTACK[1], None)
    changed = {
        name: f"{name}: {_told(before, name)} → {_told(now, name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    }
    refused = [text for name, text in changed.items() if not _may_change(name)]
    if refused:
        raise CheckpointError(
            f"the weights of {source} would compute something else in this model: {'; '.join(refused)}. Give the model "
            "what they were trained with, in conf/backbone/, conf/foresight/ and conf/model/ or on the command line."
        )
    return list(changed.values())


def require_stock_options(model: VlaMotModel, stated: Mapping[str, Any], source: object) -> None:
    """Raise CheckpointError naming every backbone option that a stock checkpoint states otherwise than the model.

    stated: of `UnderstandingExpert.stock_options`.
    """
    mine = flat(model.understanding.config)
    other = [
        f"backbone.{name}={_plain(value)} (here {mine[name]})"
        for name, value in stated.items()
        if mine[name] != _plain(value)
    ]
    if other:
        raise CheckpointError(
            f"{source} was trained with {', '.join(sorted(other))}; give the model the same, in conf/backbone/ or on "
            "the command line."
        )


def flat(options: Any, prefix: str = "") -> dict[str, Any]:
    """Options as `group.name` → plain value. options: a dataclass or a mapping."""
    tree = options if isinstance(options, Mapping) else asdict(options)
    found: dict[str, Any] = {}
    for name, value in tree.items():
        inner = flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
        found |= {key: _plain(item) for key, item in inner.items()}
    return found


def _options(config: ModelConfig, model: VlaMotModel) -> dict[str, Any]:
    """Every option of a model, with the defaults of its families where they are the same as the model's."""
    whole = dict(config.to_dict())
    for part, built in (("backbone", model.understanding), ("foresight", model.tokenizer)):
        told, kind = dict(whole[part] or {}), (model.config.to_dict()[part] or {}).get("type")
        own = getattr(built, "config", None)
        if own is not None and told.get("type") == kind:
            rest = {name: value for name, value in told.items() if name != "type"}
            whole[part] = {"type": kind, **asdict(section(type(own), part, rest))}
    return flat(whole)


def _may_change(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in _MAY_CHANGE)


def _told(options: Mapping[str, Any], name: str) -> Any:
    return options.get(name, "not there")


def _plain(value: Any) -> Any:
    """Lists for tuples."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value

"""The architecture of a checkpoint in the authors' layout, which its `config.json` does not state: read off the shapes.

Widths, depths and counts follow from the tensors. Head counts, position axes and token ids do not: those of the
published sizes are known, and any other size must say them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.hub.tensors import TensorInfo

# Qwen3-VL-2B's image processor enlarges what has fewer pixels (FACTS: 224×224 → 256×256).
_QWEN_MIN_PIXELS, _QWEN_MAX_PIXELS = 65_536, 16_777_216
_TOKENIZER_SIZE = [256, 256]  # every view is resized to it before the autoencoder
_NUM_VIEWS, _OFFSET_FRAMES = 3, 15
# Keys of their config.json that name the understanding expert, and the two others; each ends in its depth, `_28l`.
_VARIANTS = {
    "qwena1": ("qwen3_vl_variant", "action_expert_variant"),
    "interna1": ("internvl_variant", "qwen2_variant"),
}
_QWEN, _INTERN = "model.qwen3_vl_with_expert.", "model.internvl_with_expert."


def read_architecture(path: str | Path) -> dict[str, Any]:
    """Read options of `ModelConfig` from a YAML file. Raises ConfigError when it holds none."""
    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"architecture={path} cannot be read: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"architecture={path} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"architecture={path} must hold model options such as `backbone: {{…}}`.")
    return content


class Shapes:
    """Shapes by tensor name, and how many numbered tensors there are. Raises CheckpointError for a missing one."""

    def __init__(self, infos: Mapping[str, TensorInfo], source: str) -> None:
        self._infos, self._source = infos, source

    def __call__(self, name: str) -> tuple[int, ...]:
        if name not in self._infos:
            raise CheckpointError(
                f"{self._source} lacks {name}; it is no complete checkpoint of that layout."
            )
        return self._infos[name].shape

    def count(self, template: str, least: int = 1) -> int:
        """One more than the highest number that stands for {} in any tensor's name, so that a lost one is missed.

        Raises CheckpointError for fewer than `least`, or for a number that so few tensors cannot reach.
        """
        start, end = template.split("{}")
        pattern = re.compile(rf"{re.escape(start)}(\d+){re.escape(end)}")
        numbers = {int(match[1]) for name in self._infos if (match := pattern.match(name))}
        if not numbers and not least:
            return 0
        if not numbers:
            raise CheckpointError(
                f"{self._source} holds no {template.format(0)}…; it is no complete checkpoint of that layout."
            )
        if max(numbers) > len(self._infos):
            raise CheckpointError(
                f"{self._source} numbers {template.format(max(numbers))}…, but holds {len(self._infos)} tensors in all."
            )
        return max(numbers) + 1

    def dtype(self, name: str) -> str:
        """The stored dtype, e.g. `bfloat16`."""
        self(name)
        return str(self._infos[name].dtype).removeprefix("torch.")


def infer_model(
    config: Mapping[str, Any], infos: Mapping[str, TensorInfo], source: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of `ModelConfig` for a released checkpoint.

    config: the authors' `config.json`. given: options that override what is inferred, and complete it.
    Raises CheckpointError when a tensor is missing, or when an unpublished size leaves options open.
    """
    shapes = Shapes(infos, source)
    qwen = config["type"] == "qwena1"
    stack = _QWEN if qwen else _INTERN
    inner = "" if qwen else "model."
    backbone, needed = _qwen(shapes, config) if qwen else _intern(shapes, config)
    inferred = {
        "backbone": backbone,
        "foresight": _autoencoder(shapes, "model.cosmos" if qwen else "model.cosmos_tokenizer"),
        "generation": _expert(shapes, f"{stack}gen_expert.{inner}layers.0."),
        "action": _expert(shapes, f"{stack}act_expert.{inner}layers.0."),
        "num_views": _NUM_VIEWS,
        "view_size": list(config["image_resolution"]) if qwen else list(backbone["image_size"]),
        "offset_frames": _OFFSET_FRAMES,
        "foresight_stride": config["scale_factor"],
        "chunk_size": config["chunk_size"],
        "max_state_dim": config["max_state_dim"],
        "max_action_dim": config["max_action_dim"],
        "min_period": config["min_period"],
        "max_period": config["max_period"],
        "mask_padding": False,
        "action_loss": "padded",
        "positions": "released" if qwen else "real",
        "noise_level": {
            "alpha": config["time_sampling_beta_alpha"],
            "offset": config["time_sampling_offset"],
            "scale": config["time_sampling_scale"],
        },
    }
    _require_depth(config, shapes, stack, source)
    _require_given(needed, given, source)
    merged = _merged(inferred, given)
    if "view_size" not in given and "image_size" in (given.get("backbone") or {}):
        merged["view_size"] = list(merged["backbone"]["image_size"])
    return merged


def _qwen(shapes: Shapes, config: Mapping[str, Any]) -> tuple[dict[str, Any], Sequence[str]]:
    # Here, because torchvision comes with it: seconds that no other checkpoint needs.
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    und = f"{_QWEN}und_expert."
    layer, visual = f"{und}model.language_model.layers.0.", f"{und}model.visual."
    vocab, hidden = shapes(f"{und}lm_head.weight")
    head_dim = shapes(f"{layer}self_attn.q_norm.weight")[0]
    width, _, temporal, patch, _ = shapes(f"{visual}patch_embed.proj.weight")
    merge = round((shapes(f"{visual}merger.linear_fc1.weight")[1] / width) ** 0.5)
    rows, cols = config["image_resolution"]
    cell = patch * merge
    size = smart_resize(rows, cols, cell, min_pixels=_QWEN_MIN_PIXELS, max_pixels=_QWEN_MAX_PIXELS)
    deepstack = shapes.count(f"{visual}deepstack_merger_list.{{}}.", least=0)
    backbone = {
        "type": "qwen3_vl",
        "hidden_size": hidden,
        "intermediate_size": shapes(f"{layer}mlp.gate_proj.weight")[0],
        "num_layers": shapes.count(f"{und}model.language_model.layers.{{}}."),
        "num_heads": shapes(f"{layer}self_attn.q_proj.weight")[0] // head_dim,
        "num_kv_heads": shapes(f"{layer}self_attn.k_proj.weight")[0] // head_dim,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "image_size": list(size),
        "text_length": config["tokenizer_max_length"],
        "vision": {
            "depth": shapes.count(f"{visual}blocks.{{}}."),
            "hidden_size": width,
            "intermediate_size": shapes(f"{visual}blocks.0.mlp.linear_fc1.weight")[0],
            "patch_size": patch,
            "merge_size": merge,
            "temporal_patch_size": temporal,
            "num_position_embeddings": shapes(f"{visual}pos_embed.weight")[0],
            # Where they read does not matter to the released maths, which throws them away.
            "deepstack_layers": [5, 11, 17] if deepstack == 3 and width == 1024 else list(range(deepstack)),
        },
    }
    published = (hidden, head_dim, width) == (2048, 128, 1024)
    open_questions = () if published else (
        "backbone.mrope_sections", "backbone.vision.num_heads", "backbone.image_size", "backbone.tokenizer",
        "backbone.pad_token_id", "backbone.vision_start_token_id", "backbone.vision_end_token_id",
    )  # fmt: skip
    return backbone, open_questions


def _intern(shapes: Shapes, config: Mapping[str, Any]) -> tuple[dict[str, Any], Sequence[str]]:
    und = f"{_INTERN}und_expert."
    layer, tower = f"{und}model.language_model.layers.0.", f"{und}model.vision_tower."
    vocab, hidden = shapes(f"{und}model.language_model.embed_tokens.weight")
    width, _, patch, _ = shapes(f"{tower}embeddings.patch_embeddings.projection.weight")
    side = round((shapes(f"{tower}embeddings.position_embeddings")[1] - 1) ** 0.5) * patch
    published = (hidden, width) == (896, 1024)
    backbone: dict[str, Any] = {
        "type": "internvl3",
        "hidden_size": hidden,
        "intermediate_size": shapes(f"{layer}mlp.gate_proj.weight")[0],
        "num_layers": shapes.count(f"{und}model.language_model.layers.{{}}."),
        "vocab_size": vocab,
        "image_size": [side, side],
        "text_length": config["tokenizer_max_length"],
        # What the authors' code does to this backbone, and what it was not trained with.
        "rope_base": 1e4,
        "scale_text": True,
        "image_start_token_id": None,
        "image_end_token_id": None,
        "vision": {
            "depth": shapes.count(f"{tower}encoder.layer.{{}}."),
            "hidden_size": width,
            "intermediate_size": shapes(f"{tower}encoder.layer.0.mlp.fc1.weight")[0],
            "patch_size": patch,
            "attention_bias": False,
        },
    }
    if published:
        backbone |= {"num_heads": 14, "num_kv_heads": 2}
        backbone["vision"]["num_heads"] = 16
        return backbone, ()
    return backbone, (
        "backbone.num_heads", "backbone.num_kv_heads", "backbone.vision.num_heads",
        "backbone.tokenizer", "backbone.pad_token_id",
    )  # fmt: skip


def _expert(shapes: Shapes, layer: str) -> dict[str, int]:
    inner, width = shapes(f"{layer}mlp.gate_proj.weight")
    return {"hidden_size": width, "intermediate_size": inner}


def _autoencoder(shapes: Shapes, prefix: str) -> dict[str, Any]:
    encoder = f"{prefix}._enc_model.encoder."
    channels = shapes(f"{encoder}conv_in.weight")[0]
    levels = shapes.count(f"{encoder}down.{{}}.")
    widths = [shapes(f"{encoder}down.{level}.block.0.conv1.weight")[0] for level in range(levels)]
    latent = shapes(f"{prefix}._enc_model.quant_conv.weight")[0]
    return {
        "type": "cosmos",
        "image_size": _TOKENIZER_SIZE,
        "channels": channels,
        "channel_multipliers": [width // channels for width in widths],
        "blocks_per_level": shapes.count(f"{encoder}down.0.block.{{}}."),
        "latent_channels": latent,
        "dtype": shapes.dtype(f"{encoder}conv_in.weight"),
    }


def _require_depth(config: Mapping[str, Any], shapes: Shapes, stack: str, source: str) -> None:
    """Raise CheckpointError when the weights end before, or after, the layers that the configuration names."""
    qwen = config["type"] == "qwena1"
    inner = "" if qwen else "model."
    understanding, others = _VARIANTS[config["type"]]
    for part, key in (
        ("und_expert.model.language_model.", understanding),
        (f"gen_expert.{inner}", others),
        (f"act_expert.{inner}", others),
    ):
        told = re.search(r"_(\d+)l$", str(config.get(key, "")))
        held = shapes.count(f"{stack}{part}layers.{{}}.")
        if told and int(told[1]) != held:
            raise CheckpointError(
                f"{source} holds {held} layers of {stack}{part.split('.')[0]}, but config.json says "
                f"{key}={config[key]!r}; layers are missing, or too many."
            )


def _require_given(needed: Sequence[str], given: Mapping[str, Any], source: str) -> None:
    open_questions = [path for path in needed if not _has(given, path.split("."))]
    if open_questions:
        raise CheckpointError(
            f"{source} is of none of the published sizes, and its shapes do not tell {', '.join(open_questions)}. "
            "State them in a YAML file: `vla-mot convert checkpoint=… architecture=<file.yaml> output=<folder>` writes "
            "a checkpoint that states its own (info and verify take architecture=… too; in Python architecture={…})."
        )


def _has(tree: Any, path: Sequence[str]) -> bool:
    for key in path:
        if not isinstance(tree, Mapping) or key not in tree:
            return False
        tree = tree[key]
    return True


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        before = result.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(before, value) if both else value  # type: ignore[arg-type]
    return result

"""The Qwen3-VL family as understanding expert, made of transformers' own modules.

Per view the sequence holds vision-start, one token per merged patch, vision-end; then the instruction. Positions
are Qwen3-VL's interleaved M-RoPE over real tokens only.

Legend: `B` batch, `V` views, `P` patches per view, `T` = P / merge² image tokens per view, `N` text tokens,
`U` = V·(T + 2) + N tokens, `D` text width, `E` vision width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer, Qwen3VLTextRMSNorm

from vla_mot.backbones.base import Seen, UnderstandingExpert, Understood, stated
from vla_mot.backbones.qwen3_vl_vision import VisionConfig, VisionTower
from vla_mot.backbones.tokenizers import TextEncoder, check_numbers, check_vocabulary
from vla_mot.errors import ConfigError
from vla_mot.nn.expert import Geometry
from vla_mot.nn.norm import RMSNorm, replace_norms
from vla_mot.nn.rope import RopeConfig
from vla_mot.options import section

# Our options → where `config.json` has them: as files on the Hub, and as transformers 5 writes them.
_STOCK_OPTIONS = {
    "rope_base": ("text_config.rope_theta", "text_config.rope_parameters.rope_theta"),
    "mrope_sections": ("text_config.rope_scaling.mrope_section", "text_config.rope_parameters.mrope_section"),
    "rms_norm_eps": ("text_config.rms_norm_eps",),
    "num_heads": ("text_config.num_attention_heads",),
    "num_kv_heads": ("text_config.num_key_value_heads",),
    "head_dim": ("text_config.head_dim",),
    "vision_start_token_id": ("vision_start_token_id",),
    "vision_end_token_id": ("vision_end_token_id",),
    "vision.num_heads": ("vision_config.num_heads",),
    "vision.patch_size": ("vision_config.patch_size",),
    "vision.merge_size": ("vision_config.spatial_merge_size",),
    "vision.deepstack_layers": ("vision_config.deepstack_visual_indexes",),
}


@dataclass(frozen=True)
class Qwen3VLConfig:
    """Qwen3-VL as it is used here. The defaults are Qwen3-VL-2B's.

    image_size: (height, width) in pixels that the tower sees; views of another size are resized (bicubic,
    antialiased, as the released processor does). text_length: N. tokenizer: see `tokenizers`.
    causal: every token sees only earlier ones, as the stock model was trained; the released policies attend in both
    directions. deepstack: add the features of `vision.deepstack_layers` to the image tokens after the first text
    layers, as the stock model does; the released policies compute and discard them.
    """

    hidden_size: int = 2048
    intermediate_size: int = 6144
    num_layers: int = 28
    num_heads: int = 16
    num_kv_heads: int = 8
    head_dim: int = 128
    vocab_size: int = 151936
    rope_base: float = 5e6
    mrope_sections: tuple[int, ...] = (24, 20, 20)
    rms_norm_eps: float = 1e-6
    vision: VisionConfig = field(default_factory=VisionConfig)
    image_size: tuple[int, int] = (256, 256)
    text_length: int = 48
    tokenizer: str = "qwen"
    pad_token_id: int = 151643
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    causal: bool = False
    deepstack: bool = False

    def __post_init__(self) -> None:
        special = {
            "pad_token_id": self.pad_token_id,
            "vision_start_token_id": self.vision_start_token_id,
            "vision_end_token_id": self.vision_end_token_id,
        }
        check_vocabulary(self.vocab_size, self.text_length, special)
        check_numbers(self)
        sections, count = self.mrope_sections, self.head_dim // 2
        # Each axis takes every third frequency; a wrong sum is for `Geometry` to refuse.
        fits = all(axis + 3 * (size - 1) < count for axis, size in enumerate(sections) if axis)
        if len(sections) != 3 or min(sections) < 1 or (sum(sections) == count and not fits):
            raise ConfigError(
                "backbone.mrope_sections must be three counts of frequencies (time, height, width) that can be "
                f"interleaved and add up to head_dim / 2 = {count}, got {list(sections)}."
            )
        cell = self.vision.patch_size * self.vision.merge_size
        if any(side % cell for side in self.image_size):
            raise ConfigError(
                f"backbone image_size {self.image_size} must be multiples of patch × merge = {cell} pixels."
            )
        layers, depth = self.vision.deepstack_layers, self.vision.depth
        distinct = len(set(layers) & set(range(depth)))
        if self.deepstack and not 0 < len(layers) == distinct <= self.num_layers:
            raise ConfigError(
                f"backbone.deepstack needs 1 … {self.num_layers} (num_layers) different vision.deepstack_layers out of "
                f"0 … {depth - 1} (vision.depth), got {list(layers)}; see conf/backbone/."
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns) of one view, before merging."""
        return (self.image_size[0] // self.vision.patch_size, self.image_size[1] // self.vision.patch_size)


CONFIG = Qwen3VLConfig


def build(options: Mapping[str, Any]) -> "Qwen3VLExpert":
    """Build from the options of `conf/backbone/`. Raises ConfigError for what does not fit."""
    return Qwen3VLExpert(section(Qwen3VLConfig, "backbone", options))


class Qwen3VLExpert(UnderstandingExpert):
    """Vision tower and token embeddings of a Qwen3-VL."""

    def __init__(self, config: Qwen3VLConfig) -> None:
        super().__init__()
        self.config = config
        self.hidden_size = config.hidden_size
        self.causal = config.causal
        self.geometry = Geometry(
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rope=RopeConfig(config.rope_base, tuple(config.mrope_sections)),
            rms_norm_eps=config.rms_norm_eps,
        )
        self.visual = VisionTower(config.vision, config.hidden_size, config.grid)
        # Kept for the checkpoint, read by nobody: what would be added after the last layer, too.
        read = config.num_layers - 1 if config.deepstack else 0
        self.visual.deepstack_merger_list[read:].requires_grad_(False)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.tokenize = TextEncoder(
            config.tokenizer, config.text_length, config.pad_token_id, config.vocab_size
        )

    @property
    def stock_names(self) -> tuple[tuple[str, str], ...]:
        """See the base class; the output head is the embedding."""
        text = r"(?:model\.)?language_model\."
        return (
            (r"(?:model\.)?visual\.(.+)", r"understanding.visual.\1"),
            (rf"{text}layers\.(\d+)\.(.+)", r"stack.layers.\1.experts.understanding.\2"),
            (rf"{text}norm\.weight", "stack.norms.understanding.weight"),
            (rf"{text}embed_tokens\.weight", "understanding.embed_tokens.weight"),
            (r"lm_head\.weight", "understanding.embed_tokens.weight"),
        )

    def stock_options(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See the base class."""
        found = stated(config, _STOCK_OPTIONS)
        if not self.config.deepstack:  # then nobody reads there
            found.pop("vision.deepstack_layers", None)
        return found

    def make_layers(self) -> list[nn.Module]:
        text = _hf_text_config(self.config)
        layers = (Qwen3VLTextDecoderLayer(text, i) for i in range(self.config.num_layers))
        return [replace_norms(layer, Qwen3VLTextRMSNorm) for layer in layers]

    def make_norm(self) -> nn.Module:
        return RMSNorm(self.config.hidden_size, eps=self.config.rms_norm_eps)

    def reset_buffers(self, device: torch.device | str) -> None:
        self.visual.reset_buffers(device)

    def see(self, images: Tensor) -> Seen:
        tokens, deepstack = self.visual(self.patchify(images), deepstack=self.config.deepstack)
        tokens, *deepstack = (x.unflatten(0, images.shape[:2]) for x in (tokens, *deepstack))  # (B, V, T, D)
        return Seen(tokens, tuple(deepstack))

    def arrange(self, seen: Seen, view_mask: Tensor, token_ids: Tensor, token_mask: Tensor) -> Understood:
        vision = seen.tokens
        batch, views, tokens, _ = vision.shape
        ids = (self.config.vision_start_token_id, self.config.vision_end_token_id)
        edges = torch.cat([token_ids.new_full((1,), one) for one in ids])  # filled there, not copied
        start, end = self.embed_tokens(edges).expand(batch, views, 2, -1).split(1, dim=2)
        framed = torch.cat((start, vision.to(start.dtype), end), dim=2).flatten(1, 2)
        words = self.embed_tokens(token_ids)
        embeddings = torch.cat((framed, words), dim=1)
        valid = torch.cat((view_mask.repeat_interleave(tokens + 2, dim=1), token_mask), dim=1)
        positions = self.positions(view_mask, token_mask)
        return Understood(
            embeddings, valid, positions, tuple(_among(x.to(words.dtype), words) for x in seen.deepstack)
        )

    def embed_images(self, images: Tensor) -> Tensor:
        """`(B, V, 3, H, W)` float in [0, 1] → `(B, V, T, D)`: the vision tower over equally sized views."""
        tokens, _ = self.visual(self.patchify(images))
        return tokens.unflatten(0, images.shape[:2])

    def patchify(self, images: Tensor) -> Tensor:
        """`(B, V, 3, H, W)` in [0, 1] → `(B·V, P, 3·t·p·p)` in [−1, 1], rows in merge-block order.

        Follows transformers' Qwen2-VL image processor with mean = std = 0.5 and the still frame repeated.
        """
        vision, size = self.config.vision, tuple(self.config.image_size)
        flat = images.flatten(0, 1)
        if flat.shape[-2:] != size:
            flat = F.interpolate(flat, size=size, mode="bicubic", antialias=True, align_corners=False)
        patches = rearrange(
            (flat - 0.5) / 0.5,
            "n c (h mh p) (w mw q) -> n (h w mh mw) c p q",
            mh=vision.merge_size,
            mw=vision.merge_size,
            p=vision.patch_size,
            q=vision.patch_size,
        )
        return repeat(patches, "n l c p q -> n l (c t p q)", t=vision.temporal_patch_size)

    def positions(self, view_mask: Tensor, token_mask: Tensor) -> Tensor:
        """`(3, B, U)` int64 M-RoPE positions (time, height, width), counting real tokens only.

        A present view takes one position for its start, a grid that shares one time, and one for its end; the
        next token continues after the largest coordinate. Masked tokens get 0, which nothing reads.
        """
        rows, cols = (side // self.config.vision.merge_size for side in self.config.grid)
        device, views = view_mask.device, view_mask.shape[1]
        present = view_mask.long()
        length = max(rows, cols) + 2
        first = (present.cumsum(1) - present) * length  # (B, V) position of each view's start token
        row = torch.arange(rows, device=device).repeat_interleave(cols)
        col = torch.arange(cols, device=device).repeat(rows)
        inside = torch.stack((torch.zeros_like(row), row, col)) + 1  # (3, T)
        start, end = inside.new_zeros(3, 1), inside.new_full((3, 1), length - 1)
        offsets = torch.cat((start, inside, end), dim=1)  # (3, T + 2)
        seen = first[None, :, :, None] + offsets[:, None, None, :]
        seen = (seen * present[None, :, :, None]).reshape(3, -1, views * offsets.shape[1])
        told = (present.sum(1, keepdim=True) * length + token_mask.long().cumsum(1) - 1) * token_mask
        return torch.cat((seen, told.expand(3, -1, -1)), dim=2)


def _among(features: Tensor, words: Tensor) -> Tensor:
    """`(B, V, T, D)` features of image tokens → `(B, U, D)`, zero at every other token."""
    framed = F.pad(features, (0, 0, 1, 1)).flatten(1, 2)
    return torch.cat((framed, torch.zeros_like(words)), dim=1)


def _hf_text_config(config: Qwen3VLConfig) -> Qwen3VLTextConfig:
    return Qwen3VLTextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
    )

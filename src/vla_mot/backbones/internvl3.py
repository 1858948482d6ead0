"""The InternVL3 family as understanding expert, made of transformers' own modules.

InternViT sees each view; every square of its patches becomes one image token (pixel shuffle, then a projector). Per
view the sequence holds `<img>`, the image tokens, `</img>`; then the instruction. Positions count real tokens.

The defaults are InternVL3-1B as it is. The released 2B policies (`interna1`) depart from it in four ways, each an
option: `rope_base: 10000.0`, `scale_text: true`, `vision.attention_bias: false`, and null for both image edges.

Legend: `B` batch, `V` views, `P` patches per view, `T` = P · ratio² image tokens per view, `N` text tokens,
`U` understanding tokens, `D` text width, `E` vision width.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.internvl.configuration_internvl import InternVLConfig, InternVLVisionConfig
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector, InternVLVisionModel
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm

from vla_mot.backbones.base import Seen, UnderstandingExpert, Understood, stated
from vla_mot.backbones.tokenizers import TextEncoder, check_numbers, check_vocabulary
from vla_mot.errors import ConfigError
from vla_mot.nn.expert import Geometry
from vla_mot.nn.norm import RMSNorm, replace_norms
from vla_mot.nn.rope import RopeConfig
from vla_mot.options import at_least, section

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Our options → where `config.json` has them: as files on the Hub, and as transformers 5 writes them.
_STOCK_OPTIONS = {
    "rope_base": ("text_config.rope_theta", "text_config.rope_parameters.rope_theta"),
    "rms_norm_eps": ("text_config.rms_norm_eps",),
    "num_heads": ("text_config.num_attention_heads",),
    "num_kv_heads": ("text_config.num_key_value_heads",),
    "downsample_ratio": ("downsample_ratio",),
    "vision.num_heads": ("vision_config.num_attention_heads",),
    "vision.patch_size": ("vision_config.patch_size",),
    "vision.attention_bias": ("vision_config.attention_bias",),
}


@dataclass(frozen=True)
class VisionConfig:
    """InternViT. The defaults are InternVL3-1B's. attention_bias: of queries, keys and values."""

    depth: int = 24
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_heads: int = 16
    patch_size: int = 14
    attention_bias: bool = True

    def __post_init__(self) -> None:
        counts = {key: value for key, value in asdict(self).items() if not isinstance(value, bool)}
        at_least(1, {f"backbone.vision.{key}": value for key, value in counts.items()})
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"backbone.vision.num_heads must divide hidden_size = {self.hidden_size}, got {self.num_heads}."
            )


@dataclass(frozen=True)
class InternVL3Config:
    """InternVL3 as it is used here. The defaults are InternVL3-1B's.

    scale_text: multiply text embeddings by √hidden_size. image_size: (height, width) in pixels that the tower sees, a
    square; views of another size are resized (bicubic, antialiased). downsample_ratio: of a side, by the pixel
    shuffle. text_length: N. tokenizer: see `tokenizers`. image_start_token_id, image_end_token_id: around each view's
    tokens, or null for none. tied: the output head is the embedding; otherwise it is stored, but read by nobody.
    causal: every token sees only earlier ones, as the stock model was trained.
    """

    hidden_size: int = 896
    intermediate_size: int = 4864
    num_layers: int = 24
    num_heads: int = 14
    num_kv_heads: int = 2
    vocab_size: int = 151674
    rope_base: float = 1e6
    rms_norm_eps: float = 1e-6
    scale_text: bool = False
    vision: VisionConfig = field(default_factory=VisionConfig)
    image_size: tuple[int, int] = (448, 448)
    downsample_ratio: float = 0.5
    text_length: int = 48
    tokenizer: str = "qwen"
    pad_token_id: int = 151643
    image_start_token_id: int | None = 151665
    image_end_token_id: int | None = 151666
    tied: bool = False
    causal: bool = False

    def __post_init__(self) -> None:
        special = {
            "pad_token_id": self.pad_token_id,
            "image_start_token_id": self.image_start_token_id,
            "image_end_token_id": self.image_end_token_id,
        }
        check_vocabulary(self.vocab_size, self.text_length, special)
        check_numbers(self)
        if self.downsample_ratio not in (1.0, 0.5, 0.25):
            raise ConfigError(
                f"backbone.downsample_ratio must be 1, 0.5 or 0.25, got {self.downsample_ratio}."
            )
        cell = self.vision.patch_size * self.square
        if self.image_size[0] != self.image_size[1] or self.image_size[0] % cell:
            raise ConfigError(
                f"backbone.image_size must be a square whose side is a multiple of patch / downsample_ratio = {cell} "
                f"pixels, got {list(self.image_size)}."
            )
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"backbone.hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}: "
                "InternVL3's heads share its width evenly."
            )
        if (self.image_start_token_id is None) != (self.image_end_token_id is None):
            raise ConfigError(
                "backbone.image_start_token_id and image_end_token_id must both be ids, or both be null; "
                f"got {self.image_start_token_id} and {self.image_end_token_id}."
            )

    @property
    def square(self) -> int:
        """Side of the square of patches that one image token is made of."""
        return round(1 / self.downsample_ratio)


CONFIG = InternVL3Config


def build(options: Mapping[str, Any]) -> "InternVL3Expert":
    """Build from the options of `conf/backbone/`. Raises ConfigError for what does not fit."""
    return InternVL3Expert(section(InternVL3Config, "backbone", options))


class InternVL3Expert(UnderstandingExpert):
    """Vision tower, projector and token embeddings of an InternVL3."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: InternVL3Config) -> None:
        super().__init__()
        self.config = config
        self.hidden_size = config.hidden_size
        self.causal = config.causal
        self.geometry = Geometry(
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.hidden_size // config.num_heads,
            rope=RopeConfig(config.rope_base),
            qk_norm=False,
            attention_bias=True,
            rms_norm_eps=config.rms_norm_eps,
        )
        self.vision_tower = InternVLVisionModel(_hf_vision_config(config))
        self.multi_modal_projector = InternVLMultiModalProjector(_hf_config(config))
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        if not config.tied:  # kept for the checkpoint, read by nobody
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False).requires_grad_(False)
        self.tokenize = TextEncoder(
            config.tokenizer, config.text_length, config.pad_token_id, config.vocab_size
        )
        self.register_buffer("pixel_mean", torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(IMAGENET_STD), persistent=False)

    @property
    def stock_names(self) -> tuple[tuple[str, str], ...]:
        """See the base class; a tied head is the embedding."""
        text = r"(?:model\.)?language_model\.(?:model\.)?"
        head = "embed_tokens" if self.config.tied else "lm_head"
        return (
            (r"(?:model\.)?(vision_tower|multi_modal_projector)\.(.+)", r"understanding.\1.\2"),
            (rf"{text}layers\.(\d+)\.(.+)", r"stack.layers.\1.experts.understanding.\2"),
            (rf"{text}norm\.weight", "stack.norms.understanding.weight"),
            (rf"{text}embed_tokens\.weight", "understanding.embed_tokens.weight"),
            (r"(?:(?:model\.)?language_model\.)?lm_head\.weight", f"understanding.{head}.weight"),
        )

    def stock_options(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See the base class; the stock model never scales its text."""
        found = stated(config, _STOCK_OPTIONS) | {"scale_text": False}
        match found.get("vision.patch_size"):
            case [rows, columns] if rows == columns:
                found["vision.patch_size"] = rows
        return found

    def make_layers(self) -> list[nn.Module]:
        text = _hf_text_config(self.config)
        layers = (Qwen2DecoderLayer(text, i) for i in range(self.config.num_layers))
        return [replace_norms(layer, Qwen2RMSNorm) for layer in layers]

    def make_norm(self) -> nn.Module:
        return RMSNorm(self.config.hidden_size, eps=self.config.rms_norm_eps)

    def reset_buffers(self, device: torch.device | str) -> None:
        self.pixel_mean = torch.tensor(IMAGENET_MEAN, device=device)
        self.pixel_std = torch.tensor(IMAGENET_STD, device=device)

    def see(self, images: Tensor) -> Seen:
        return Seen(self.embed_images(images))

    def arrange(self, seen: Seen, view_mask: Tensor, token_ids: Tensor, token_mask: Tensor) -> Understood:
        words = self._words(token_ids)
        framed = self._framed(seen.tokens.to(words.dtype), token_ids)  # (B, V, T', D)
        valid = torch.cat((view_mask.repeat_interleave(framed.shape[2], dim=1), token_mask), dim=1)
        positions = (valid.long().cumsum(1) - 1) * valid
        return Understood(torch.cat((framed.flatten(1, 2), words), dim=1), valid, positions.unsqueeze(0))

    def embed_images(self, images: Tensor) -> Tensor:
        """`(B, V, 3, H, W)` float in [0, 1] → `(B, V, T, D)` image tokens, row by row."""
        flat, size = images.flatten(0, 1), self.config.image_size
        if flat.shape[-2:] != size:
            flat = F.interpolate(flat, size=size, mode="bicubic", antialias=True, align_corners=False)
        pixels = (flat - self.pixel_mean[:, None, None]) / self.pixel_std[:, None, None]
        patches = self.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:]  # without the class token
        square = self.config.square
        tokens = rearrange(
            patches,
            "n (r a c b) e -> n (r c) (a b e)",
            r=size[0] // self.config.vision.patch_size // square,
            a=square,
            b=square,
        )
        return self.multi_modal_projector(tokens).unflatten(0, images.shape[:2])

    def _words(self, token_ids: Tensor) -> Tensor:
        words = self.embed_tokens(token_ids)
        return words * self.config.hidden_size**0.5 if self.config.scale_text else words

    def _framed(self, vision: Tensor, token_ids: Tensor) -> Tensor:
        """`(B, V, T, D)` image tokens between `<img>` and `</img>`, where there are such tokens."""
        ids = (self.config.image_start_token_id, self.config.image_end_token_id)
        if None in ids:
            return vision
        edges = torch.cat([token_ids.new_full((1,), one) for one in ids])  # filled there, not copied
        start, end = self._words(edges).expand(*vision.shape[:2], 2, -1).split(1, dim=2)
        return torch.cat((start, vision, end), dim=2)


def _hf_text_config(config: InternVL3Config) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        rms_norm_eps=config.rms_norm_eps,
    )


def _hf_vision_config(config: InternVL3Config) -> InternVLVisionConfig:
    vision = config.vision
    return InternVLVisionConfig(
        hidden_size=vision.hidden_size,
        num_hidden_layers=vision.depth,
        num_attention_heads=vision.num_heads,
        intermediate_size=vision.intermediate_size,
        attention_bias=vision.attention_bias,
        image_size=list(config.image_size),
        patch_size=[vision.patch_size] * 2,
    )


def _hf_config(config: InternVL3Config) -> InternVLConfig:
    return InternVLConfig(
        text_config=_hf_text_config(config),
        vision_config=_hf_vision_config(config),
        downsample_ratio=config.downsample_ratio,
    )

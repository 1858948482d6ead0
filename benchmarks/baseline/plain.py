"""The joint model as one writes it from stock transformers modules, with nothing done for speed.

Eager attention over a dense additive mask, softmax in float32, KV heads repeated; one loop over the layers of three
stock text stacks, whose norms compute in float32; rotary tables and mask made anew in every layer; the last layer
finishes the understanding tokens that nobody reads; the stock vision tower, picture by picture.

It holds the very parameters of the model that it is made from, so that both can be compared number by number, and
shares with it what has nothing to do with the stack: heads, foresight tokenizer, M-RoPE positions of the prefix.

Legend: `B` batch, `V` views, `T` image tokens per view, `U`/`G` understanding and generation tokens, `L` chunk steps,
`A` action dims, `S` = U + G + 1 + L tokens, `D_e` width of expert e, `H` heads, `d` head dim.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextRMSNorm,
    Qwen3VLTextRotaryEmbedding,
    Qwen3VLVisionModel,
    Qwen3VLVisionRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from vla_mot.backbones.qwen3_vl import Qwen3VLConfig
from vla_mot.batch import Batch, Observation
from vla_mot.errors import ConfigError
from vla_mot.model.model import Losses, VlaMotModel
from vla_mot.robots.images import to_unit

EXPERTS = ("understanding", "generation", "action")
BLOCKS = ("understanding", "generation", "state", "action")


class PlainModel(nn.Module):
    """The baseline. Its parameters are those of `model`.

    lean: the two things that a careful author would do first: rotary tables and mask once per pass, and all pictures
        through the vision tower at once (ours). recompute: every layer is computed again in the backward pass.
    Raises ConfigError for a model that it was not written for.
    """

    def __init__(self, model: VlaMotModel, *, lean: bool = False, recompute: bool = False) -> None:
        super().__init__()
        _require_known(model)
        self.config, self.lean, self.recompute = model.config, lean, recompute
        self.understanding, self.generation, self.action = model.understanding, model.generation, model.action
        self.encode_frames = model.encode_frames
        self.visual = None if lean else _stock_tower(model)
        texts = {name: _text_config(model, name) for name in EXPERTS}
        self.stacks = nn.ModuleDict({name: _stock_layers(model, name, texts[name]) for name in EXPERTS})
        self.norms = nn.ModuleDict({name: _stock_norm(model, name, texts[name]) for name in EXPERTS})
        self.rotary = Qwen3VLTextRotaryEmbedding(texts["understanding"]).to(_device(model))

    def forward(self, batch: Batch, noise: Tensor, noise_level: Tensor) -> Losses:
        """As `VlaMotModel`, for one noise draw: `(B, 1, L, A)` and `(B, 1)`."""
        draw, level = noise.squeeze(1), noise_level.squeeze(1)
        real = batch.action_mask
        x = (level[:, None, None] * draw + (1 - level[:, None, None]) * batch.actions) * real.any(1)[:, None]
        velocity, latents = self._predict(batch.observation, x, level, real.any(-1))
        true = batch.future_latents
        if true is None:
            true = self.encode_frames(batch.future.unsqueeze(2)).squeeze(2)
        error = (velocity - (draw - batch.actions)).square() * real
        miss = (latents - true.float()).square().flatten(2)
        return Losses(
            action_sum=error.flatten(1).sum(1),
            action_count=real.flatten(1).sum(1).float(),
            foresight_sum=(miss.sum(2) * batch.future_mask).sum(1),
            foresight_count=batch.future_mask.sum(1).float() * miss.shape[2],
        )

    def _predict(self, seen: Observation, x: Tensor, level: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy actions `(B, L, A)` at levels `(B,)` → velocity `(B, L, A)` and foresight `(B, V, C, h, w)`."""
        latents = self.encode_frames(seen.images) if seen.latents is None else seen.latents.float()
        state, actions = self.action.embed_state(seen.state), self.action.embed_actions(x, level)
        hidden = [self._understand(seen), self.generation.embed(latents), torch.cat((state, actions), dim=1)]
        outputs = self._stack(hidden, *self._places(seen, steps))
        return self.action.predict(outputs[2][:, 1:]), self.generation.predict(outputs[1])

    def _understand(self, seen: Observation) -> Tensor:
        """`(B, U, D)`: embedded token ids, image features in the places of their placeholders."""
        config, pictures = self.understanding.config, to_unit(seen.images[:, :, 1])
        features = self._see(pictures)
        batch, views = seen.view_mask.shape
        count = features.shape[0] // (batch * views)
        view = [config.vision_start_token_id, *[config.pad_token_id] * count, config.vision_end_token_id]
        told = torch.tensor(view * views, device=features.device).expand(batch, -1)
        embedded = self.understanding.embed_tokens(torch.cat((told, seen.token_ids), dim=1))
        image = torch.tensor([False, *[True] * count, False], device=features.device).repeat(views)
        image = torch.cat((image, image.new_zeros(seen.token_ids.shape[1])))[None, :, None]
        return embedded.masked_scatter(image.expand_as(embedded), features.to(embedded.dtype))

    def _see(self, pictures: Tensor) -> Tensor:
        """`(B, V, 3, H, W)` in [0, 1] → image features `(B·V·T, D)`."""
        if self.visual is None:
            return self.understanding.embed_images(pictures).flatten(0, 2)
        patches = self.understanding.patchify(pictures)
        grid = torch.tensor([[1, *self.understanding.config.grid]], device=patches.device)
        return self.visual(patches.flatten(0, 1), grid_thw=grid.expand(len(patches), 3)).pooler_output

    def _places(self, seen: Observation, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of all tokens: positions `(3, B, S)`, whether they are real `(B, S)`, the number of their block `(S,)`."""
        first = self.understanding.positions(seen.view_mask, seen.token_mask)
        per_view = (first.shape[2] - seen.token_ids.shape[1]) // seen.view_mask.shape[1]
        told = torch.cat((seen.view_mask.repeat_interleave(per_view, 1), seen.token_mask), dim=1)
        foreseen = seen.view_mask.repeat_interleave(self.generation.tokens_per_view, 1)
        one = torch.ones_like(seen.view_mask[:, :1])
        last = first.amax(0).masked_fill(~told, -1).amax(1, keepdim=True)
        # Steps behind the episode's end keep their places, though nobody looks at them.
        counted = torch.cat((foreseen, one, torch.ones_like(steps)), dim=1)
        later = last + counted.long().cumsum(1)
        valid = [told, foreseen, one, steps]
        lengths = torch.tensor([part.shape[1] for part in valid], device=later.device)
        block = torch.arange(len(BLOCKS), device=later.device)
        block = block.repeat_interleave(lengths, output_size=later.shape[1] + first.shape[2])
        return torch.cat((first, later.expand(3, -1, -1)), dim=2), torch.cat(valid, dim=1), block

    # ---- the stack ------------------------------------------------------------------------------------------

    def _stack(self, hidden: list[Tensor], positions: Tensor, valid: Tensor, block: Tensor) -> list[Tensor]:
        """Embeddings `(B, S_e, D_e)` of the experts → their normed outputs."""
        places = positions, valid, block
        tables = self._tables(hidden[0], *places) if self.lean else None
        for number in range(len(self.stacks["understanding"])):
            if self.recompute and self.training:
                hidden = checkpoint(self._layer, number, hidden, places, tables, use_reentrant=False)
            else:
                hidden = self._layer(number, hidden, places, tables)
        return [self.norms[name](x) for name, x in zip(EXPERTS, hidden, strict=True)]

    def _layer(
        self,
        number: int,
        hidden: Sequence[Tensor],
        places: tuple[Tensor, Tensor, Tensor],
        tables: tuple[Tensor, Tensor, Tensor] | None,
    ) -> list[Tensor]:
        tables = self._tables(hidden[0], *places) if tables is None else tables
        return self._join(EXPERTS, number, hidden, tables)

    def _join(
        self,
        experts: Sequence[str],
        number: int,
        hidden: Sequence[Tensor],
        tables: tuple[Tensor, Tensor, Tensor],
        cache: Cache | None = None,
    ) -> list[Tensor]:
        """One layer of these experts, attended together. cache: what its keys and values are appended to."""
        layers: list[Any] = [self.stacks[name][number] for name in experts]
        cos, sin, mask = tables
        queries, keys, values = [], [], []
        for layer, x in zip(layers, hidden, strict=True):
            attention, normed = layer.self_attn, layer.input_layernorm(x)
            heads = (*x.shape[:2], -1, attention.head_dim)
            queries.append(attention.q_norm(attention.q_proj(normed).view(heads)).transpose(1, 2))
            keys.append(attention.k_norm(attention.k_proj(normed).view(heads)).transpose(1, 2))
            values.append(attention.v_proj(normed).view(heads).transpose(1, 2))
        joint = layers[0].self_attn
        query, key = apply_rotary_pos_emb(torch.cat(queries, 2), torch.cat(keys, 2), cos, sin)
        value = torch.cat(values, 2)
        if cache is not None:
            key, value = cache.update(key, value, number)
        attended, _ = eager_attention_forward(joint, query, key, value, mask, scaling=joint.scaling)
        parts = attended.flatten(2).split([x.shape[1] for x in hidden], dim=1)
        done = []
        for layer, x, part in zip(layers, hidden, parts, strict=True):
            x = x + layer.self_attn.o_proj(part)
            done.append(x + layer.mlp(layer.post_attention_layernorm(x)))
        return done

    def _tables(
        self, like: Tensor, positions: Tensor, valid: Tensor, block: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cosines and sines `(B, Q, d)`, and the additive mask `(B, 1, Q, S)`, in the dtype of `like`.

        positions: of the queries, which are the last Q of the S tokens; with nothing cached all of them. What may not
        be attended to gets the lowest finite number, as in transformers: −∞ makes a row of padding NaN.
        """
        cos, sin = self.rotary(like, positions)
        first = block.shape[0] - positions.shape[2]
        allowed = (block[None, :] <= block[first:, None]) & valid[:, None, :] & valid[:, first:, None]
        mask = torch.zeros(allowed.shape, dtype=like.dtype, device=like.device)
        return cos, sin, mask.masked_fill(~allowed, torch.finfo(like.dtype).min).unsqueeze(1)


def _require_known(model: VlaMotModel) -> None:
    config, backbone = model.config, model.understanding.config
    if not isinstance(backbone, Qwen3VLConfig) or backbone.causal or backbone.deepstack:
        raise ConfigError(
            "the baseline knows backbone.type=qwen3_vl with causal=false and deepstack=false only."
        )
    if not config.mask_padding:
        raise ConfigError("the baseline knows model.mask_padding=true only.")


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _text_config(model: VlaMotModel, expert: str) -> Qwen3VLTextConfig:
    geometry, layer = model.understanding.geometry, model.stack.layers[0].get_submodule(f"experts.{expert}")
    config = Qwen3VLTextConfig(
        hidden_size=layer.get_submodule("mlp.gate_proj").in_features,
        intermediate_size=layer.get_submodule("mlp.gate_proj").out_features,
        num_hidden_layers=geometry.num_layers,
        num_attention_heads=geometry.num_heads,
        num_key_value_heads=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
        rms_norm_eps=geometry.rms_norm_eps,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": geometry.rope.base,
            "mrope_section": list(geometry.rope.sections),
        },
    )
    return config


def _stock_layers(model: VlaMotModel, expert: str, config: Qwen3VLTextConfig) -> nn.ModuleList:
    with torch.device("meta"):
        layers = nn.ModuleList(Qwen3VLTextDecoderLayer(config, i) for i in range(config.num_hidden_layers))
    for mine, theirs in zip(layers, model.stack.layers, strict=True):
        _share(mine, theirs.get_submodule(f"experts.{expert}"))
    return layers


def _stock_norm(model: VlaMotModel, expert: str, config: Qwen3VLTextConfig) -> nn.Module:
    with torch.device("meta"):
        norm = Qwen3VLTextRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
    return _share(norm, model.stack.norms[expert])


def _stock_tower(model: VlaMotModel) -> nn.Module:
    """The vision tower as transformers runs it: one picture at a time, DeepStack features included."""
    tower: Any = model.understanding.visual
    with torch.device("meta"):
        stock = Qwen3VLVisionModel(tower.config)
    sizes = tower.sizes
    # The only buffer of the stock tower is no weight: it has to be computed.
    stock.rotary_pos_emb = Qwen3VLVisionRotaryEmbedding(sizes.hidden_size // sizes.num_heads // 2).to(
        _device(model)
    )
    return _share(stock, tower)


def _share(stock: nn.Module, ours: nn.Module) -> nn.Module:
    """Give `stock` the very parameters of `ours`. Raises AssertionError unless both have the same names and shapes."""
    mine, theirs = dict(stock.named_parameters()), dict(ours.named_parameters())
    assert mine.keys() == theirs.keys(), sorted(mine.keys() ^ theirs.keys())
    for name, parameter in theirs.items():
        assert mine[name].shape == parameter.shape, name
        place, _, leaf = name.rpartition(".")
        setattr(stock.get_submodule(place), leaf, parameter)
    return stock

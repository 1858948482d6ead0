"""The joint model: `[understanding | generation | state | action]` in one Mixture-of-Transformers stack.

The generation expert may be absent, and with it the foresight tokenizer and everything that the model foresees.

Training runs the whole sequence once (`losses`). Inference runs everything that does not depend on the noise
once (`prefill`) and then only the action tokens against a read-only cache (`denoise`).

Legend: `B` batch, `V` views, `U`/`G` understanding and generation tokens, `L` chunk steps, `A` action dims,
`K` noise draws per sample, `C`/`h`/`w` latent channels, rows and columns, `X` position axes.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vla_mot.backbones import Understood, build_backbone
from vla_mot.batch import Batch, Observation
from vla_mot.errors import ConfigError
from vla_mot.flow.matching import interpolate, velocity
from vla_mot.flow.solvers import Guide, Solver, integrate
from vla_mot.foresight import build_tokenizer
from vla_mot.foresight.base import ForesightTokenizer
from vla_mot.model.config import ModelConfig
from vla_mot.model.heads import ActionHead, GenerationHead
from vla_mot.model.precision import cast_weights, keeps_float32
from vla_mot.model.tokens import Tokens
from vla_mot.nn.autocast import without_autocast
from vla_mot.nn.cache import Cache, KVCache
from vla_mot.nn.expert import ExpertConfig, ExpertLayer, Geometry
from vla_mot.nn.masks import ACTION, GENERATION, STATE, UNDERSTANDING, TokenLayout, build_attn_mask
from vla_mot.nn.mot import JointLayer, JointTransformer
from vla_mot.nn.norm import RMSNorm
from vla_mot.nn.rope import rotation
from vla_mot.robots.images import to_unit


class Losses(NamedTuple):
    """Per-sample sums of squared errors and how many numbers each sum counts, `(B,)` each.

    Means are formed by whoever knows the global batch, so that two ranks equal one. A tuple, because sharding looks for
    the tensors that a module returns.
    """

    action_sum: Tensor
    action_count: Tensor
    foresight_sum: Tensor
    foresight_count: Tensor


@dataclass(frozen=True)
class Prefix:
    """What denoising reads: cached keys and values, their layout, the last position `(B,)`; and the foresight
    `(B, V, C, h, w)`, None without a generation expert."""

    kv_cache: KVCache
    layout: TokenLayout
    last_position: Tensor
    foresight: Tensor | None


class VlaMotModel(nn.Module):
    """Understanding, generation and action experts that attend together.

    tokenizer, generation: None in a model without generation expert.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.understanding = build_backbone(config.backbone)
        self.tokenizer: ForesightTokenizer | None = None
        self.generation: GenerationHead | None = None
        if config.foresight is not None and config.generation is not None:
            self.tokenizer = build_tokenizer(config.foresight).requires_grad_(False)
            self.generation = GenerationHead(
                self.tokenizer.latent_channels,
                self.tokenizer.latent_size,
                config.foresight_stride,
                config.generation.hidden_size,
                config.history,
            )
        geometry, action = self.understanding.geometry, config.action
        self.action = ActionHead(
            config.max_state_dim,
            config.max_action_dim,
            action.hidden_size,
            (config.min_period, config.max_period),
        )
        own = {"generation": config.generation, "action": action}
        made = {name: expert for name, expert in own.items() if expert is not None}
        self.stack = JointTransformer(
            geometry,
            {"understanding": self.understanding.make_layers()}
            | {name: _layers(geometry, expert) for name, expert in made.items()},
            {"understanding": self.understanding.make_norm()}
            | {name: RMSNorm(e.hidden_size, eps=geometry.rms_norm_eps) for name, e in made.items()},
        )
        _freeze_outputs(self.stack, "understanding")

    keeps_float32 = staticmethod(keeps_float32)

    def cast(self, dtype: torch.dtype) -> Self:
        """Give the weights `dtype`, in place, except those of which `keeps_float32` is true.

        Inputs are cast where they enter; integration, losses and predicted latents stay float32. See `precision`.
        """
        cast_weights(self, dtype)
        return self

    def reset_buffers(self, device: torch.device | str) -> Self:
        """Compute anew, on `device`, what no checkpoint stores.

        For a model built under `torch.device("meta")`, after `load_state_dict(…, assign=True)`.
        """
        self.understanding.reset_buffers(device)
        if self.tokenizer is not None:
            self.tokenizer.reset_buffers(device)
        return self

    def freeze_foresight(self) -> None:
        """Keep the weights that only a foresight loss would train, in place: the head's, and the generation expert's
        last outputs. Its keys and values go on learning what actions need."""
        if self.generation is not None:
            self.generation.freeze_outputs()
            _freeze_outputs(self.stack, "generation")

    def tokenizer_parameters(self) -> set[nn.Parameter]:
        """The foresight tokenizer's, which never train."""
        return set() if self.tokenizer is None else set(self.tokenizer.parameters())

    def required_tokenizer(self) -> ForesightTokenizer:
        """The foresight tokenizer. Raises ConfigError in a model that has none."""
        if self.tokenizer is None:
            raise ConfigError(
                "the model has no generation expert (model.generation is null) and so no foresight tokenizer: it "
                "encodes no frames and foresees nothing."
            )
        return self.tokenizer

    # ---- training -------------------------------------------------------------------------------------------

    def losses(self, batch: Batch, noise: Tensor, noise_level: Tensor) -> Losses:
        """Flow-matching and foresight errors of a batch, over real places only (but see `config.action_loss`).

        noise: `(B, K, L, A)`, noise_level: `(B, K)`. The K draws of a sample share its prefix and do not see
        each other, so they equal K separate passes.
        """
        predicted, latents = self._joint(batch, noise, noise_level)
        target = velocity(noise, batch.actions.unsqueeze(1))
        return self._sum_losses(batch, predicted, target, latents)

    def forward(self, batch: Batch, noise: Tensor, noise_level: Tensor) -> Losses:
        """`losses`, in the name that data parallelism calls."""
        return self.losses(batch, noise, noise_level)

    def loss_counts(self, batch: Batch, draws: int) -> tuple[Tensor, Tensor]:
        """How many numbers the losses of a batch sum, action and foresight, `(B,)` each: known before they are."""
        size, tokenizer = 0, self.tokenizer
        if tokenizer is not None:
            size = tokenizer.latent_channels * math.prod(tokenizer.latent_size)
        return (
            self._counted(batch).flatten(1).sum(1).float() * draws,
            batch.future_mask.sum(1).float() * size,
        )

    def _joint(self, batch: Batch, noise: Tensor, noise_level: Tensor) -> tuple[Tensor, Tensor | None]:
        """Velocity `(B, K, L, A)` and foresight `(B, V, C, h, w)` from one pass over the whole sequence."""
        observation, draws = batch.observation, noise.shape[1]
        x = interpolate(
            noise.flatten(0, 1), batch.actions.repeat_interleave(draws, 0), noise_level.flatten()
        ).unflatten(0, noise.shape[:2])
        steps = torch.ones_like(batch.action_mask[:, :, 0])
        if self.config.mask_padding:
            x = x * batch.action_mask.any(1)[:, None, None, :]
            steps = batch.action_mask.any(-1)
        tokens = self.prefix_tokens(observation)
        last = tokens.last_position
        layout = TokenLayout.of(ACTION, steps.repeat(1, draws), groups=draws)
        tokens.append(
            "action", self._action_tokens(x, noise_level), layout, self.action_positions(last, draws)
        )
        states, _ = self._run(tokens, tokens.layout, outputs=(*self._foreseeing, "action"), keep_cache=False)
        outputs = states["action"][:, 1:].unflatten(1, (draws, self.config.chunk_size))
        return self.action.predict(outputs), self._foreseen(states)

    @property
    def _foreseeing(self) -> tuple[str, ...]:
        """The expert whose outputs are the foresight, if there is one."""
        return () if self.generation is None else ("generation",)

    def _foreseen(self, states: Mapping[str, Tensor]) -> Tensor | None:
        return None if self.generation is None else self.generation.predict(states["generation"])

    def _sum_losses(self, batch: Batch, predicted: Tensor, target: Tensor, latents: Tensor | None) -> Losses:
        error = (predicted.float() - target.float()).square() * self._counted(batch).unsqueeze(1)
        action_count, foresight_count = self.loss_counts(batch, draws=error.shape[1])
        return Losses(
            action_sum=error.flatten(1).sum(1),
            action_count=action_count,
            foresight_sum=torch.zeros_like(foresight_count)
            if latents is None
            else self._missed(batch, latents),
            foresight_count=foresight_count,
        )

    def _missed(self, batch: Batch, latents: Tensor) -> Tensor:
        """Squared errors of the foresight, summed over real views with a real future, `(B,)`."""
        true_latents = batch.future_latents
        if true_latents is None:
            true_latents = self.encode_frames(batch.future.unsqueeze(2)).squeeze(2)
        miss = (latents.float() - true_latents.float()).square().flatten(2)
        return (miss.sum(2) * batch.future_mask).sum(1)

    def _counted(self, batch: Batch) -> Tensor:
        """`(B, L, A)` bool: which numbers the action loss is over."""
        mask = batch.action_mask
        if self.config.action_loss == "padded":
            mask = mask.flatten(1).any(1)[:, None, None].expand_as(mask)
        return mask

    # ---- inference ------------------------------------------------------------------------------------------

    def prefill(self, observation: Observation) -> Prefix:
        """Run understanding, generation and state tokens once."""
        tokens = self.prefix_tokens(observation, sampling=True)
        layout = tokens.layout
        states, cache = self._run(tokens, layout, outputs=self._foreseeing)
        return Prefix(cache, layout, tokens.last_position, self._foreseen(states))

    def denoise(self, prefix: Prefix, x: Tensor, noise_level: Tensor) -> Tensor:
        """Velocity `(B, L, A)` float32 of noisy actions `(B, L, A)` at levels `(B,)`, against a cached prefix."""
        steps = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        chunk = TokenLayout.of(ACTION, steps)
        hidden = {"action": self._action_tokens(x.unsqueeze(1), noise_level.unsqueeze(1))}
        tokens = Tokens(hidden, [chunk], [self.action_positions(prefix.last_position, 1)])
        layout = TokenLayout.concat([prefix.layout, chunk])
        states, _ = self._run(tokens, layout, outputs=("action",), kv_cache=prefix.kv_cache)
        return self.action.predict(states["action"])

    @torch.no_grad()
    def sample(
        self,
        observation: Observation,
        noise: Tensor,
        num_steps: int,
        action_dim: int,
        *,
        solver: Solver = "euler",
        guide: Guide | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Sample normalized actions `(B, L, A)` float32 from `(B, L, A)` noise; also returns the foresight latents,
        None without a generation expert.

        action_dim: real action dimensions; the padded ones stay zero when `mask_padding` is set.
        guide: bends the velocity on its way (`vla_mot.flow.solvers`).
        """
        prefix, noise = self.prefill(observation), noise.float()
        real = torch.ones(noise.shape[-1], dtype=noise.dtype, device=noise.device)
        if self.config.mask_padding:
            real[action_dim:] = 0

        def velocity_at(x: Tensor, level: Tensor) -> Tensor:
            return self.denoise(prefix, x, level) * real

        bent = velocity_at if guide is None else guide(velocity_at)
        return integrate(bent, noise * real, num_steps, solver), prefix.foresight

    # ---- tokens ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Tensor:
        """`(B, V, T, 3, H, W)` uint8 or float in [0, 1] → latents `(B, V, T, C, h, w)`, without gradient.

        Raises ConfigError without a generation expert, as do the three below.
        """
        tokenizer = self.required_tokenizer()
        with without_autocast(frames.device):  # a tokenizer has its own dtype
            pictures = self._tokenizer_pictures(frames.flatten(0, 2))
            return tokenizer.encode(pictures).unflatten(0, frames.shape[:3])

    @torch.no_grad()
    def fit_tokenizer(self, frames: Tensor) -> None:
        """Fit the tokenizer's statistics on frames `(N, 3, H, W)`, uint8 or float in [0, 1], as they will be encoded.

        Raises ConfigError when nothing can be fitted on them.
        """
        with without_autocast(frames.device):
            self.required_tokenizer().fit(self._tokenizer_pictures(frames))

    def _tokenizer_pictures(self, frames: Tensor) -> Tensor:
        """`(N, 3, H, W)` uint8 or float in [0, 1] → the same in [−1, 1], at the tokenizer's size."""
        unit, size = to_unit(frames), self.required_tokenizer().image_size
        if unit.shape[-2:] != size:
            unit = F.interpolate(unit, size=size, mode="bilinear", align_corners=False)
        return unit * 2 - 1

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents `(B, V, C, h, w)` → pictures `(B, V, 3, H, W)` in [0, 1]."""
        with without_autocast(latents.device):
            pictures = self.required_tokenizer().decode(latents.flatten(0, 1))
        return ((pictures + 1) / 2).clamp(0, 1).unflatten(0, latents.shape[:2])

    def prefix_tokens(self, observation: Observation, *, sampling: bool = False) -> Tokens:
        """The understanding, generation and state tokens, in that order: embeddings, layouts and positions.

        Without a generation expert the state follows the understanding.
        """
        seen = self._understand(observation)
        tokens = Tokens(
            {"understanding": seen.embeddings},
            [TokenLayout.of(UNDERSTANDING, seen.valid, causal=self.understanding.causal)],
            [seen.positions],
            {"understanding": seen.deepstack},
        )
        last = seen.positions.amax(0).masked_fill(~seen.valid, -1).amax(1, keepdim=True)  # (B, 1)
        axes = seen.positions.shape[0]
        if self.generation is not None:
            latents = observation.latents
            latents = self.encode_frames(observation.images) if latents is None else latents.float()
            present = observation.view_mask.repeat_interleave(self.generation.tokens_per_view, dim=1)
            everyone = sampling and self.config.positions == "released"
            where = last + (torch.ones_like(present) if everyone else present).long().cumsum(1)
            layout = TokenLayout.of(GENERATION, present)
            tokens.append("generation", self.generation.embed(latents), layout, where.expand(axes, -1, -1))
            last = where[:, -1:]
        one = torch.ones_like(observation.view_mask[:, :1])
        state = self.action.embed_state(observation.state)
        tokens.append("action", state, TokenLayout.of(STATE, one), (last + 1).expand(axes, -1, -1))
        return tokens

    def _understand(self, observation: Observation) -> Understood:
        present = to_unit(observation.images[:, :, 1])
        return self.understanding(
            present, observation.view_mask, observation.token_ids, observation.token_mask
        )

    def _action_tokens(self, x: Tensor, noise_level: Tensor) -> Tensor:
        """`(B, K, L, A)` noisy actions at `(B, K)` levels → `(B, K·L, D)`."""
        tokens = self.action.embed_actions(x.flatten(0, 1), noise_level.flatten())
        return tokens.unflatten(0, x.shape[:2]).flatten(1, 2)

    def action_positions(self, last: Tensor, draws: int) -> Tensor:
        """`(X, B, K·L)`: each draw continues after the state's position `last` `(B,)`."""
        steps = torch.arange(1, self.config.chunk_size + 1, device=last.device).repeat(draws)
        axes = max(1, len(self.understanding.geometry.rope.sections))
        return (last[:, None] + steps).expand(axes, -1, -1)

    def _run(
        self,
        tokens: Tokens,
        layout: TokenLayout,
        *,
        outputs: Collection[str],
        kv_cache: Cache | None = None,
        keep_cache: bool = True,
    ) -> tuple[dict[str, Tensor], KVCache]:
        """The stack over `tokens`; `layout` is theirs, behind the cached ones'."""
        where, geometry = tokens.where, self.understanding.geometry
        turn = rotation(where, geometry.head_dim, geometry.rope)
        mask = build_attn_mask(layout, num_queries=where.shape[2])
        return self.stack(
            tokens.hidden,
            turn,
            mask,
            outputs=outputs,
            kv_cache=kv_cache,
            injected=tokens.injected,
            keep_cache=keep_cache,
        )


@torch.no_grad()
def _layers(geometry: Geometry, config: ExpertConfig) -> list[nn.Module]:
    """Fresh layers: torch's default initialisation, with both residual projections scaled by 1/√(2·layers)."""
    layers = [ExpertLayer(geometry, config) for _ in range(geometry.num_layers)]
    for layer in layers:
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            projection.weight.mul_((2 * geometry.num_layers) ** -0.5)
    return list(layers)


def _freeze_outputs(stack: JointTransformer, expert: str) -> None:
    """An expert's last outputs are read by nobody: keep these weights, but do not train them."""
    last_layer = cast(JointLayer, stack.layers[-1])
    last: Any = last_layer.experts[expert]
    attention = last.self_attn
    unused = [last.mlp, last.post_attention_layernorm, attention.o_proj, attention.q_proj]
    for module in (*unused, getattr(attention, "q_norm", None), stack.norms[expert]):
        if module is not None:
            module.requires_grad_(False)

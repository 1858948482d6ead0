"""The stages of one call, over fixed shapes and fixed places: each reads and writes the same buffers every time.

    vision        present pictures → image tokens
    encode        pictures of both times → latents
    understanding image tokens and words → keys and values
    foresight     latents and state → keys and values, and the latents of the future
    denoise       noise → actions, in K steps

Legend: `B` robots, `V` views that are looked at, `N` text tokens, `S` padded state dims, `L` chunk steps, `A` padded
action dims, `C`/`h`/`w` latent channels, rows, columns, `E` evaluations of the velocity.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vla_mot.backbones import Seen
from vla_mot.flow.solvers import Solver, integrate
from vla_mot.infer.engine.plan import Plan, Stage
from vla_mot.model.model import VlaMotModel
from vla_mot.nn.cache import StaticCache
from vla_mot.nn.fused import FusedLayer
from vla_mot.nn.projection import Projection
from vla_mot.robots.images import to_unit


class Stages:
    """The stages of one form. Holds the keys and values, and nothing of an observation beside them.

    fused: per layer, expert → its fused projections. maps: `patch_map` and `cell_map` of the generation head, if it
        runs. compiled: run stack and heads by `torch.compile`, and but on a CPU vision and encoder.
    """

    def __init__(
        self,
        model: VlaMotModel,
        plan: Plan,
        fused: Sequence[Mapping[str, FusedLayer]],
        maps: tuple[Projection, Projection] | None,
        *,
        compiled: bool,
        foresight: bool,
    ) -> None:
        self.model, self.fused, self.maps, self.predicts = model, fused, maps, foresight
        self.counts = plan.counts
        geometry = model.understanding.geometry
        room = (plan.form.rows, sum(plan.counts), geometry.num_kv_heads, geometry.head_dim)
        like = next(model.stack.parameters()).new_empty(0, dtype=model.stack.dtype)
        self.cache = StaticCache.empty(geometry.num_layers, room, like)
        ones = torch.ones(plan.form.rows, max(len(plan.form.views), 1), dtype=torch.bool, device=like.device)
        self._present = ones[:, : len(plan.form.views)]
        self._worded = torch.ones(plan.form.rows, plan.form.words, dtype=torch.bool, device=like.device)
        run: Callable[[Any], Any] = _compiled if compiled else _as_it_is
        # On a CPU vision gains nothing, and torch's own kernels resize pictures faster than what they compile to.
        look: Callable[[Any], Any] = _as_it_is if like.device.type == "cpu" else run
        self.vision = look(self._vision)
        self.encode = look(self._encode)
        self.understand = run(self._understand)
        self.foresee = run(self._foresee)
        self.velocity = run(self._velocity)

    def _vision(self, pictures: Tensor, *, fixed: None) -> Seen:
        """Present pictures `(B, V, 3, H, W)` uint8, or float in [0, 1] → image tokens."""
        return self.model.understanding.see(to_unit(pictures))

    def _encode(self, pictures: Tensor, *, fixed: None) -> Tensor:
        """Pictures `(B, V, T, 3, H, W)` → latents `(B, V, T, C, h, w)`."""
        return self.model.encode_frames(pictures)

    def _understand(self, seen: Seen, token_ids: Tensor, *, fixed: Stage) -> None:
        """Write the understanding tokens' keys and values. token_ids: `(B, N)`."""
        told = self.model.understanding.arrange(seen, self._present, token_ids, self._worded)
        hidden, injected = {"understanding": told.embeddings}, {"understanding": told.deepstack}
        self._run(hidden, fixed, 0, (), injected)

    def _foresee(self, latents: Tensor | None, state: Tensor, *, fixed: Stage) -> Tensor | None:
        """Write generation and state tokens' keys and values; returns the latents `(B, V, C, h, w)` to come, if asked.

        latents: `(B, V, 2, C, h, w)` of both times; None without the generation expert. state: `(B, S)` normalized.
        """
        hidden = {"action": self.model.action.embed_state(state)}
        head = self.model.generation
        if latents is None or head is None:
            self._run(hidden, fixed, self.counts[0], (), {})
            return None
        assert self.maps is not None
        patch_map, cell_map = self.maps
        hidden = {"generation": head.embed_by_map(latents, patch_map), **hidden}
        outputs = ("generation",) if self.predicts else ()
        states = self._run(hidden, fixed, self.counts[0], outputs, {})
        return head.predict_by_map(states["generation"], cell_map) if self.predicts else None

    def denoise(
        self, noise: Tensor, steps: int, solver: Solver, *, fixed: tuple[Stage, Tensor, Tensor]
    ) -> Tensor:
        """Carry noise `(B, L, A)` to normalized actions.

        fixed: where the chunk stands; the `(E, D)` terms of `ActionHead.level_terms`; `(A,)`, 0 where a dimension stays
        zero.
        """
        stage, terms, real = fixed
        told = iter(terms.unbind())
        return integrate(
            lambda x, level: self.velocity(x, next(told), stage) * real, noise * real, steps, solver
        )

    def _velocity(self, x: Tensor, term: Tensor, stage: Stage) -> Tensor:
        """`VlaMotModel.denoise` at the level of `term`."""
        hidden = {"action": self.model.action.embed_with_term(x, term)}
        states = self._run(hidden, stage, sum(self.counts[:3]), ("action",), {})
        return self.model.action.predict(states["action"])

    def _run(
        self,
        hidden: Mapping[str, Tensor],
        stage: Stage,
        start: int,
        outputs: Sequence[str],
        injected: Mapping[str, Sequence[Tensor]],
    ) -> dict[str, Tensor]:
        states, _ = self.model.stack(
            hidden,
            stage.turn,
            stage.sees,
            outputs=outputs,
            kv_cache=self.cache.at(start),
            injected=injected,
            keep_cache=False,
            fused=self.fused,
        )
        return states


def _as_it_is[F](function: F) -> F:
    return function


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, dynamic=False)

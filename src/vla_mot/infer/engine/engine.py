"""`Engine`: samples what `VlaMotModel.sample` does, in stages whose shapes and places never change.

    observation ─ vision ─ understanding ─┐
                └ encode ─────────────────┴ foresight ─ K denoising steps ─ actions

A *form* (robots, views, words, picture size) has its stages made once, by its first call, which is slow. Further calls
make nothing anew: tokens of absent cameras and padding are left out, positions, masks and noise-level embeddings are
tables, keys and values are written in place, q/k/v and gate/up are one product each.

Legend: `B` robots, `L` chunk steps, `A` padded action dims, `V` camera slots, `C`/`h`/`w` latent channels, rows,
columns.
"""

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from vla_mot.batch import Observation
from vla_mot.flow.solvers import Guide, Solver, evaluated_levels, integrate
from vla_mot.infer.engine.config import EngineConfig
from vla_mot.infer.engine.graphs import Recorded
from vla_mot.infer.engine.plan import Form, Plan, Stage, make_plan
from vla_mot.infer.engine.quantize import quantized
from vla_mot.infer.engine.stages import Stages
from vla_mot.model.model import Prefix, VlaMotModel
from vla_mot.nn.fused import FusedLayer
from vla_mot.nn.mot import JointLayer

Run = Callable[..., Any]
STAGES = ("vision", "understanding", "encode", "foresight", "denoise")
_MOST_PLANS = 256
_MOST_PROGRAMS = 256
"""Stages × forms that may be compiled; torch's own limit of 8 ends in running uncompiled."""


@dataclass
class _Form:
    """What is made for one form.

    denoise: by steps, solver and real action dimensions, with its tables. owner, age: whose understanding is kept, and
    for how many calls it was not renewed.
    """

    stages: Stages
    vision: Run
    encode: Run
    understand: Run
    foresee: Run
    denoise: dict[tuple[int, Solver, int], tuple[Run, Tensor, Tensor]] = field(default_factory=dict)
    owner: Any = None
    age: int = 0


class Engine:
    """Samples from a model whose weights stay where they are. Not for several threads at once.

    Weights may change in place if `forget` is called afterwards; a model that was moved or cast needs a new engine.
    Raises TypeError when a projection is no plain linear map (an adapter is to be merged first).
    """

    def __init__(self, model: VlaMotModel, config: EngineConfig) -> None:
        self.model, self.config = model, config
        self.device = next(model.parameters()).device
        fused = [
            {name: FusedLayer.of(expert) for name, expert in cast(JointLayer, layer).experts.items()}
            for layer in model.stack.layers
        ]
        self._fused = quantized(fused, config.quantize)
        cuda = self.device.type == "cuda"
        self._graphs = config.graphs and cuda
        self._side = torch.cuda.Stream(self.device) if cuda else None
        self._forms: dict[Form, _Form] = {}
        self._plans: dict[Any, Plan] = {}
        self._encoders: dict[tuple[int, ...], Run] = {}
        self._told: tuple[Any, tuple[Stage, Tensor, Tensor]] | None = None
        self._clock: Callable[[str], Any] = _untimed
        if config.kind == "compiled":
            dynamo = torch._dynamo.config
            dynamo.recompile_limit = max(dynamo.recompile_limit, _MOST_PROGRAMS)

    def forget(self) -> None:
        """Make everything anew at the next call."""
        self._forms.clear()
        self._plans.clear()
        self._encoders.clear()

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
        session: Hashable | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """See `VlaMotModel.sample`. The foresight `(B, V, C, h, w)` is zero at views that nobody looks at.

        observation: `view_mask` and `token_mask` on the CPU, so that nobody waits for the device to read them; the rest
            anywhere.
        guide: runs by `VlaMotModel.denoise`, against the same keys and values: a guide may ask for gradients.
        session: whose call it is. With `understanding_every` > 1 a session's understanding serves its next calls,
            unless another one's came between.
        """
        plan = self._plan(observation)
        form = self._form(plan)
        foresight = self._prefill(observation, plan, form, session)
        noise = noise.to(self.device, torch.float32, non_blocking=True)
        count = action_dim if self.model.config.mask_padding else noise.shape[-1]
        run, terms, real = self._denoise(form, num_steps, solver, count)
        with self._clock("denoise"):
            if guide is None:
                actions = run(noise, fixed=self._tables(plan, terms, real))
            else:
                actions = self._guided(form, plan, guide, noise, real, num_steps, solver)
        return actions.clone(), foresight

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """`VlaMotModel.encode_frames` of `(B, V, T, 3, H, W)`, in memory of its own."""
        shape = tuple(pictures.shape)
        if shape not in self._encoders:
            run: Run = self.model.encode_frames
            if self.config.kind == "compiled":
                run = torch.compile(run, fullgraph=True, dynamic=False)
            self._encoders[shape] = self._recorded(lambda frames, fixed: run(frames))
        with self._clock("encode"):
            return self._encoders[shape](self._here(pictures), fixed=None).clone()

    @torch.no_grad()
    def timed(
        self, observation: Observation, noise: Tensor, num_steps: int, action_dim: int, **options: Any
    ) -> dict[str, float]:
        """Seconds of every stage of one `sample`, with the device waited for between them."""
        seconds: dict[str, float] = {}
        self._clock = lambda stage: _Timed(seconds, stage, self.device)
        try:
            self.sample(observation, noise, num_steps, action_dim, **options)
        finally:
            self._clock = _untimed
        return {stage: seconds[stage] for stage in STAGES if stage in seconds}

    # ---- what is made once ----------------------------------------------------------------------------------

    def _plan(self, observation: Observation) -> Plan:
        masks = (x.cpu().numpy().tobytes() for x in (observation.view_mask, observation.token_mask))
        key = (observation.batch_size, observation.images.shape[-2:], *masks)
        if key not in self._plans:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            config = self.config
            here = observation.to(self.device)
            self._plans[key] = make_plan(self.model, here, config.text_multiple, generation=config.generation)
        return self._plans[key]

    def _form(self, plan: Plan) -> _Form:
        if plan.form not in self._forms:
            config = self.config
            stages = Stages(
                self.model,
                plan,
                self._fused,
                compiled=config.kind == "compiled",
                foresight=config.foresight,
            )
            self._forms[plan.form] = _Form(
                stages,
                vision=self._recorded(stages.vision),
                encode=self._recorded(stages.encode),
                understand=self._recorded(stages.understand),
                foresee=self._recorded(stages.foresee),
            )
        return self._forms[plan.form]

    def _denoise(self, form: _Form, steps: int, solver: Solver, real_dims: int) -> tuple[Run, Tensor, Tensor]:
        """What carries noise to actions, its `(E, D)` tables of levels, and `(A,)`: 1 for real dimensions, else 0."""
        key = (steps, solver, real_dims)
        if key not in form.denoise:
            levels = evaluated_levels(steps, solver, self.device)
            real = torch.zeros(self.model.config.max_action_dim, device=self.device)
            real[:real_dims] = 1
            run = partial(form.stages.denoise, steps=steps, solver=solver)
            form.denoise[key] = (self._recorded(run), self.model.action.level_terms(levels), real)
        return form.denoise[key]

    def _tables(self, plan: Plan, terms: Tensor, real: Tensor) -> tuple[Stage, Tensor, Tensor]:
        """The same tuple for the same parts, so that a recording sees that nothing has changed."""
        key = (id(plan), id(terms), id(real))
        if self._told is None or self._told[0] != key:
            self._told = (key, (plan.action, terms, real))
        return self._told[1]

    def _recorded(self, run: Run) -> Run:
        return Recorded(run) if self._graphs else run

    # ---- one call -------------------------------------------------------------------------------------------

    def _prefill(
        self, observation: Observation, plan: Plan, form: _Form, session: Hashable | None
    ) -> Tensor | None:
        views = _slots(plan.form.views)
        images = self._here(observation.images[:, views])
        words = observation.token_ids[:, : plan.form.words]
        with self._aside(), self._clock("encode"):  # beside vision and understanding, where the device can
            latents = self._latents(observation, images, plan, form)
        if self._is_due(form, session, words):
            with self._clock("vision"):
                seen = form.vision(images[:, :, 1], fixed=None)
            with self._clock("understanding"):
                form.understand(seen, self._here(words), fixed=plan.understanding)
        if self._side is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._side)
        with self._clock("foresight"):
            foreseen = form.foresee(latents, self._here(observation.state), fixed=plan.foresight)
        return None if foreseen is None else self._spread(foreseen, plan, observation.view_mask.shape[1])

    def _latents(self, observation: Observation, images: Tensor, plan: Plan, form: _Form) -> Tensor | None:
        """Of both times `(B, V, 2, C, h, w)`, of the views that are looked at; None without the generation expert."""
        if not self.config.generation:
            return None
        if observation.latents is None:
            return form.encode(images, fixed=None)
        return self._here(observation.latents[:, _slots(plan.form.views)]).float()

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """On a stream of its own, behind what was asked for so far; on the CPU simply now."""
        if self._side is None:
            yield
            return
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            yield

    def _is_due(self, form: _Form, session: Hashable | None, words: Tensor) -> bool:
        """Whether the understanding expert looks now."""
        every = self.config.understanding_every
        if every == 1:
            return True
        owner = None if session is None else (session, words.cpu().numpy().tobytes())
        if owner is not None and owner == form.owner and form.age + 1 < every:
            form.age += 1
            return False
        form.owner, form.age = owner, 0
        return True

    def _guided(
        self,
        form: _Form,
        plan: Plan,
        guide: Guide,
        noise: Tensor,
        real: Tensor,
        steps: int,
        solver: Solver,
    ) -> Tensor:
        cache = form.stages.cache.at(plan.prefix).read()
        prefix = Prefix(cache, plan.layout, plan.last, noise.new_zeros(0))
        bent = guide(lambda x, level: self.model.denoise(prefix, x, level) * real)
        return integrate(bent, noise * real, steps, solver)

    def _spread(self, foresight: Tensor, plan: Plan, slots: int) -> Tensor:
        """Latents of the looked-at views → `(B, V, C, h, w)`, in memory of its own."""
        whole = foresight.new_zeros((foresight.shape[0], slots, *foresight.shape[2:]))
        whole[:, _slots(plan.form.views)] = foresight
        return whole

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)


class _Timed:
    """Adds the seconds of a `with` block to those of its stage."""

    def __init__(self, seconds: dict[str, float], stage: str, device: torch.device) -> None:
        self._seconds, self._stage, self._device = seconds, stage, device

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def __enter__(self) -> None:
        self._start = self._now()

    def __exit__(self, *error: object) -> None:
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + self._now() - self._start


def _untimed(stage: str) -> AbstractContextManager[None]:
    return nullcontext()


def _slots(views: tuple[int, ...]) -> slice | list[int]:
    """A slice where the views are the first ones, which copies nothing."""
    return slice(0, len(views)) if views == tuple(range(len(views))) else list(views)

"""`Engine`: samples what `VlaMotModel.sample` does, in stages whose shapes and places never change.

    observation ─ vision ─ understanding ─┐
                └ encode ─────────────────┴ foresight ─ K denoising steps ─ actions

A *form* (robots, views, words, picture size) has its stages made once, by its first call, which is slow. Further calls
make nothing anew: tokens of absent cameras and padding are left out, positions, masks and noise-level embeddings are
tables, keys and values are written in place, q/k/v and gate/up are one projection each.

Legend: `B` robots, `L` chunk steps, `A` padded action dims, `V` camera slots, `C`/`h`/`w` latent channels, rows,
columns.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from vla_mot.batch import Observation
from vla_mot.errors import ConfigError
from vla_mot.flow.solvers import Guide, Solver, evaluated_levels, integrate
from vla_mot.infer.engine.clock import Timed, untimed
from vla_mot.infer.engine.config import EngineConfig
from vla_mot.infer.engine.graphs import Recorded
from vla_mot.infer.engine.plan import Plan, Stage, make_plan
from vla_mot.infer.engine.quantize import quantized
from vla_mot.infer.engine.recent import Recent
from vla_mot.infer.engine.stages import Stages
from vla_mot.model.model import Prefix, VlaMotModel
from vla_mot.nn.fused import FusedLayer
from vla_mot.nn.mot import JointLayer, allow_programs

Run = Callable[..., Any]
STAGES = ("vision", "understanding", "encode", "foresight", "denoise")
_MOST_PLANS = 256
_MOST_FORMS = 32
"""Each holds keys and values of its own, and on CUDA graphs with their memory."""
_MOST_PROGRAMS = 256
"""Stages × forms that may be compiled."""


@dataclass
class _Form:
    """What is made for one form. denoise: by steps, solver and real action dimensions, with its tables."""

    stages: Stages
    vision: Run
    encode: Run
    understand: Run
    foresee: Run
    denoise: dict[tuple[int, Solver, int], tuple[Run, Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Understood:
    """Whose understanding lies in a form's keys and values, and for how many calls it was not renewed."""

    form: _Form
    owner: Any
    age: int = 0


class Engine:
    """Samples from a model whose weights stay where they are. Not for several threads at once.

    Weights may change in place if `forget` is called afterwards. Raises TypeError when a projection is no plain linear
    map (an adapter is to be merged first).
    """

    def __init__(self, model: VlaMotModel, config: EngineConfig) -> None:
        self.model, self.config = model, config
        self.device = next(model.parameters()).device
        cuda = self.device.type == "cuda"
        self._graphs = config.graphs and cuda
        # Two things at once on a device need two streams to be recorded on: products have a workspace per stream.
        self._main, self._side = (torch.cuda.Stream(self.device) if cuda else None for _ in range(2))
        self._plans = Recent[Plan](_MOST_PLANS)
        self._forms = Recent[_Form](_MOST_FORMS)
        self._encoders = Recent[Run](_MOST_FORMS)
        self._understood: _Understood | None = None
        self._told: tuple[Plan, Tensor, Tensor, tuple[Stage, Tensor, Tensor]] | None = None
        self._clock: Callable[[str], Any] = untimed
        if config.kind == "compiled":
            allow_programs(_MOST_PROGRAMS)
        self.forget()

    @property
    def generates(self) -> bool:
        """Whether there is a generation expert that runs."""
        return self.config.generation and self.model.generation is not None

    @property
    def _oldest(self) -> int:
        """For how many calls an understanding may serve that was not renewed."""
        every = self.config.understanding_every
        return every if self.config.understanding_ahead else every - 1

    @property
    def understanding_age(self) -> int:
        """For how many calls the understanding behind the last one was not renewed."""
        return 0 if self._understood is None else self._understood.age

    def forget(self) -> None:
        """Make everything anew at the next call."""
        fused = [
            {name: FusedLayer.of(expert) for name, expert in cast(JointLayer, layer).experts.items()}
            for layer in self.model.stack.layers
        ]
        self._fused = quantized(fused, self.config.quantize)
        head = self.model.generation if self.generates else None
        self._maps = None if head is None else (head.patch_map(), head.cell_map())
        parts = [] if head is None else [head.in_proj, head.downsample, head.upsample]
        for layer in self.model.stack.layers:
            for expert in cast(Any, layer).experts.values():
                attention, mlp = expert.self_attn, expert.mlp
                parts += [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
                parts += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        self._weights = [(part, part.weight.data_ptr()) for part in parts]
        self._plans.clear()
        self._forms.clear()
        self._encoders.clear()
        self._understood = self._told = None

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
            unless another one's, or another form, came between.
        Raises ConfigError when the weights were moved or replaced since the engine was made.
        """
        self._require_weights()
        with self._on_device():
            plan = self._plan(observation)
            form = self._forms.get(plan.form, lambda: self._make_form(plan))
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
    def look(self, observation: Observation, session: Hashable) -> None:
        """Renew what this session understood, for its next calls, if it served as many as it may. See `sample`.

        Does nothing unless the session's was the last call, on the same form and instruction.
        """
        self._require_weights()
        with self._on_device():
            plan = self._plan(observation)
            form = self._forms.get(plan.form, lambda: self._make_form(plan))
            words = observation.token_ids[:, : plan.form.words]
            last = self._own(form, _owner(session, words))
            if last is not None and last.age >= self.config.understanding_every:
                pictures = plan.looked_at(self._here(observation.images))[:, :, 1]
                self._renew(pictures, words, plan, form, last.owner)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """`VlaMotModel.encode_frames` of `(B, V, T, 3, H, W)`, in memory of its own."""

        def make() -> Run:
            run: Run = self.model.encode_frames
            if self.config.kind == "compiled" and self.device.type != "cpu":
                run = torch.compile(run, fullgraph=True, dynamic=False)
            return self._recorded(lambda frames, fixed: run(frames), self._main)

        with self._on_device(), self._clock("encode"):
            run = self._encoders.get((pictures.shape, pictures.dtype), make)
            return run(self._here(pictures), fixed=None).clone()

    @torch.no_grad()
    def timed(
        self, observation: Observation, noise: Tensor, num_steps: int, action_dim: int, **options: Any
    ) -> dict[str, float]:
        """Seconds of every stage of one `sample`, with the device waited for between them."""
        seconds: dict[str, float] = {}
        self._clock = lambda stage: Timed(seconds, stage, self.device)
        try:
            self.sample(observation, noise, num_steps, action_dim, **options)
        finally:
            self._clock = untimed
        return {stage: seconds[stage] for stage in STAGES if stage in seconds}

    # ---- what is made once ----------------------------------------------------------------------------------

    def _plan(self, observation: Observation) -> Plan:
        masks = (x.cpu().numpy().tobytes() for x in (observation.view_mask, observation.token_mask))
        images, config = observation.images, self.config

        def make() -> Plan:
            with torch.inference_mode(False), torch.no_grad():
                here = observation.to(self.device)
                return make_plan(self.model, here, config.text_multiple, generation=self.generates)

        return self._plans.get((observation.batch_size, images.shape[-2:], images.dtype, *masks), make)

    def _make_form(self, plan: Plan) -> _Form:
        with torch.inference_mode(False), torch.no_grad():  # buffers that any later call may write to
            compiled, foresight = self.config.kind == "compiled", self.config.foresight
            made = (self._fused, self._maps)
            stages = Stages(self.model, plan, *made, compiled=compiled, foresight=foresight)
        return _Form(
            stages,
            vision=self._recorded(stages.vision, self._main),
            encode=self._recorded(stages.encode, self._side),
            understand=self._recorded(stages.understand, self._main),
            foresee=self._recorded(stages.foresee, self._main),
        )

    def _denoise(self, form: _Form, steps: int, solver: Solver, real_dims: int) -> tuple[Run, Tensor, Tensor]:
        """What carries noise to actions, its `(E, D)` tables of levels, and `(A,)`: 1 for real dimensions, else 0."""
        key = (steps, solver, real_dims)
        if key not in form.denoise:
            with torch.inference_mode(False), torch.no_grad():
                terms = self.model.action.level_terms(evaluated_levels(steps, solver, self.device))
                real = torch.zeros(self.model.config.max_action_dim, device=self.device)
                real[:real_dims] = 1
            run = partial(form.stages.denoise, steps=steps, solver=solver)
            form.denoise[key] = (self._recorded(run, self._main), terms, real)
        return form.denoise[key]

    def _tables(self, plan: Plan, terms: Tensor, real: Tensor) -> tuple[Stage, Tensor, Tensor]:
        """The same tuple for the same parts, so that a recording sees that nothing has changed."""
        told = self._told
        if told is None or told[0] is not plan or told[1] is not terms or told[2] is not real:
            self._told = told = (plan, terms, real, (plan.action, terms, real))
        return told[3]

    def _recorded(self, run: Run, stream: torch.cuda.Stream | None) -> Run:
        return Recorded(run, stream) if self._graphs and stream is not None else run

    def _require_weights(self) -> None:
        if any(part.weight.data_ptr() != place for part, place in self._weights):
            raise ConfigError(
                "the model's weights were moved, cast or replaced since this engine was made, which still reads the "
                "old ones; call engine.forget() after replacing them, or policy.compile() again after moving them."
            )

    def _on_device(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    # ---- one call -------------------------------------------------------------------------------------------

    def _prefill(
        self, observation: Observation, plan: Plan, form: _Form, session: Hashable | None
    ) -> Tensor | None:
        images = plan.looked_at(self._here(observation.images))
        words = observation.token_ids[:, : plan.form.words]
        with self._aside(), self._clock("encode"):  # beside vision and understanding, where the device can
            latents = self._latents(observation, images, plan, form)
        self._understand(images[:, :, 1], words, plan, form, session)
        if self._side is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._side)
        with self._clock("foresight"):
            foreseen = form.foresee(latents, self._here(observation.state), fixed=plan.foresight)
        return None if foreseen is None else plan.spread(foreseen, observation.view_mask.shape[1])

    def _latents(self, observation: Observation, images: Tensor, plan: Plan, form: _Form) -> Tensor | None:
        """Of both times `(B, V, 2, C, h, w)`, of the views that are looked at; None without the generation expert."""
        if not self.generates:
            return None
        if observation.latents is None:
            return form.encode(images, fixed=None)
        # Laid out as what `encode` makes: what is compiled asks for the strides that it was compiled for.
        return plan.looked_at(self._here(observation.latents)).float().contiguous()

    def _understand(
        self, pictures: Tensor, words: Tensor, plan: Plan, form: _Form, session: Hashable | None
    ) -> None:
        """Look with the understanding expert, unless what this session understood may serve once more."""
        owner = None if session is None or self._oldest == 0 else _owner(session, words)
        last = self._own(form, owner)
        if last is not None and last.age < self._oldest:
            self._understood = replace(last, age=last.age + 1)
            return
        self._renew(pictures, words, plan, form, owner)

    def _own(self, form: _Form, owner: Hashable) -> _Understood | None:
        """What lies in the keys and values of this form, if it is this owner's."""
        last = self._understood
        return last if last is not None and last.form is form and last.owner == owner is not None else None

    def _renew(self, pictures: Tensor, words: Tensor, plan: Plan, form: _Form, owner: Hashable) -> None:
        self._understood = None  # nobody's, if what follows fails
        with self._clock("vision"):
            seen = form.vision(pictures, fixed=None)
        with self._clock("understanding"):
            form.understand(seen, self._here(words), fixed=plan.understanding)
        self._understood = _Understood(form, owner)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """On a stream of its own, behind what was asked for so far; on the CPU simply now."""
        if self._side is None:
            yield
            return
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            yield

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
        """A guide that goes back through the denoiser needs the model's own code: stages write where they stand."""
        cache = form.stages.cache.at(plan.prefix).read()
        prefix = Prefix(cache, plan.layout, plan.last, foresight=None)

        def velocity(x: Tensor, level: Tensor) -> Tensor:
            if x.requires_grad and torch.is_grad_enabled():
                return self.model.denoise(prefix, x, level) * real
            (term,) = self.model.action.level_terms(level[:1])
            return form.stages.velocity(x, term, plan.action) * real

        return integrate(guide(velocity), noise * real, steps, solver)

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)


def _owner(session: Hashable, words: Tensor) -> Hashable:
    """Whose understanding it is: this session's, of these words."""
    return session, words.cpu().numpy().tobytes()

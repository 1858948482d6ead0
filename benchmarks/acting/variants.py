"""What is compared, by name: the baseline, our model as it is, and our engine; all of them policies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from acting.plain import Compiled, PlainSampler
from vla_mot.batch import ActionChunk
from vla_mot.errors import ConfigError, unknown_name
from vla_mot.infer.policy import Policy

_WAYS = {
    "plain": ("compiled", "autotuned"),
    "ours": ("static", "compiled", "int8", "fp8", "history"),
}
_PLAIN_MODES: dict[str, Compiled] = {"": "", "compiled": "default", "autotuned": "max-autotune"}
_KINDS, _ROUNDED = ("static", "compiled"), ("int8", "fp8")

LEGEND = """plain: the plain-transformers-style baseline (stock layers and vision tower, eager attention over a dense
float mask, a dynamic cache, masks and positions made anew in every denoising step); plain+compiled, plain+autotuned:
its stages by torch.compile in its default mode, and with mode=max-autotune. ours: Policy.predict as it is. ours+static,
ours+compiled: the same policy after Policy.compile(kind=…); +int8, +fp8: with the action expert's weights rounded;
+history: latents of the history frame known, as in a session that encodes frames when they arrive."""


class PlainPolicy(Policy):
    """A policy that samples with the baseline; what surrounds the model is the same."""

    def __init__(self, policy: Policy, compiled: Compiled = "") -> None:
        super().__init__(policy.model, policy.spec, policy.robot)
        self.sampler = PlainSampler(policy.model, compiled=compiled)

    def predict(
        self,
        images: Mapping[str, Tensor],
        state: Tensor,
        instructions: Sequence[str],
        noise: Tensor,
        guide: Any = None,
    ) -> ActionChunk:
        """As `Policy.predict`, without a guide."""
        assert guide is None, "the baseline knows no guide"
        sampler, width = self.spec.sampler, self.robot.embodiment.action_dim
        seen = self.observe(images, state, instructions)
        actions, foresight = self.sampler.sample(
            seen, noise.to(self.device), sampler.num_steps, width, sampler.solver
        )
        return ActionChunk(self.processor.physical(actions, state.to(self.device)), foresight)


class HistoryKnown(Policy):
    """A policy in the midst of a session: what is history now was encoded when it arrived, before the call."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy.model, policy.spec, policy.robot, policy.engine)
        self._past: Tensor | None = None

    def latents(self, images: Mapping[str, Tensor]) -> Tensor:
        """`(B, V, 2, C, h, w)` of pictures `(B, 2, 3, h, w)`, whose history is encoded in the first call only."""
        if self._past is None:
            self._past = self.encode({key: pair[:, 0] for key, pair in images.items()})
        present = self.encode({key: pair[:, 1] for key, pair in images.items()})
        return torch.stack((self._past, present), dim=2)

    def predict(self, images: Mapping[str, Tensor], *told: Any, **options: Any) -> ActionChunk:
        """See `Policy.predict`."""
        return super().predict(images, *told, **options, latents=self.latents(images))


@dataclass(frozen=True)
class Variant:
    """model: `plain` or `ours`. ways: how it is run; without any: as it is."""

    model: str
    ways: tuple[str, ...]

    @classmethod
    def of(cls, name: str) -> Self:
        """From a name such as `plain` or `ours+static+int8`. Raises ConfigError for one that there is not."""
        model, *ways = name.split("+")
        if model not in _WAYS:
            raise ConfigError(unknown_name("variant", model, _WAYS))
        for way in ways:
            if way not in _WAYS[model]:
                raise ConfigError(unknown_name(f"way of running {model!r}", way, _WAYS[model]))
        for several in ({*_KINDS, "autotuned"}, {*_ROUNDED}):
            if len(several.intersection(ways)) > 1:
                raise ConfigError(f"{name!r} asks for several of {', '.join(sorted(several))}; say one.")
        if set(ways) & {*_ROUNDED} and not set(ways) & {*_KINDS}:
            raise ConfigError(f"{name!r} rounds weights, which an engine does: say {model}+static+….")
        return cls(model, tuple(ways))

    @property
    def exact(self) -> bool:
        """Whether it gives the same actions."""
        return not set(self.ways) & {*_ROUNDED}

    def around(self, policy: Policy) -> Policy:
        """A policy on the same weights that runs in this way."""
        if self.model == "plain":
            return PlainPolicy(policy, _PLAIN_MODES["".join(self.ways)])
        for kind in set(self.ways) & {*_KINDS}:
            rounded = [way for way in self.ways if way in _ROUNDED]
            policy = policy.compile(kind, quantize=rounded[0] if rounded else "none")
        return HistoryKnown(policy) if "history" in self.ways else policy


def around(variants: Mapping[str, Variant], policy: Policy) -> dict[str, Policy]:
    """The policies of all variants. What was compiled for others is forgotten, for torch keeps only so many programs of
    one function, and then goes on without."""
    torch.compiler.reset()
    return {name: variant.around(policy) for name, variant in variants.items()}


def named(names: str) -> dict[str, Variant]:
    """Variants from names with commas between them."""
    return {name: Variant.of(name) for name in names.split(",")}

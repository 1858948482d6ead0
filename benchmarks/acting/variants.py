"""What is compared, by name: the baseline, our model as it is, and our engine; all of them policies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from acting.plain import Compiled, PlainSampler
from vla_mot.batch import ActionChunk
from vla_mot.errors import ConfigError, unknown_name
from vla_mot.infer.policy import Policy

_WAYS: dict[str, tuple[str, ...]] = {
    "plain": ("", "compiled", "autotuned"),
    "ours": ("", "static", "compiled"),
}
_PLAIN_MODES: dict[str, Compiled] = {"": "", "compiled": "default", "autotuned": "max-autotune"}

LEGEND = """plain: the plain-transformers-style baseline (stock layers and vision tower, eager attention over a dense
float mask, a dynamic cache, masks and positions made anew in every denoising step); plain+compiled, plain+autotuned:
its stages by torch.compile in its default mode, and with mode=max-autotune. ours: Policy.predict as it is. ours+static,
ours+compiled: the same policy after Policy.compile(kind=…)."""


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


@dataclass(frozen=True)
class Variant:
    """model: `plain` or `ours`. way: how it is run; empty: as it is."""

    model: str
    way: str

    @classmethod
    def of(cls, name: str) -> Self:
        """From a name such as `plain` or `ours+static`. Raises ConfigError for one that there is not."""
        model, _, way = name.partition("+")
        if model not in _WAYS:
            raise ConfigError(unknown_name("variant", model, _WAYS))
        if way not in _WAYS[model]:
            raise ConfigError(unknown_name(f"way of running {model!r}", way, _WAYS[model]))
        return cls(model, way)

    def around(self, policy: Policy) -> Policy:
        """A policy on the same weights that runs in this way."""
        if self.model == "plain":
            return PlainPolicy(policy, _PLAIN_MODES[self.way])
        return policy.compile(kind=self.way) if self.way else policy


def named(names: str) -> dict[str, Variant]:
    """Variants from names with commas between them."""
    return {name: Variant.of(name) for name in names.split(",")}

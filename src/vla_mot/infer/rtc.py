"""Real-time chunking: the next chunk begins where the last one, which is still being executed, goes on.

Black, Galliker, Levine 2025, "Real-Time Execution of Action Chunking Flow Policies" (arXiv 2506.07339). While a chunk
is being predicted, the robot executes `delay` more steps of the last one. These are *committed*: the next chunk should
agree with them, so that it can take over without a jump. Two ways, both of them bend the flow on its way from noise
(s = 1) to actions (s = 0); the weights of the policy stay as they are.

*guided* (the paper's): at each level the denoiser's guess of the final actions, x̂₀ = x − s·v(x, s), is compared with
the left-over actions Y, and the velocity is pulled by the difference, carried back through the denoiser:

    v' = v − min(β, ((1 − s)² + s²) / (s·(1 − s))) · (W ⊙ (Y − x̂₀))ᵀ ∂x̂₀/∂x

with a soft mask W over the steps of the chunk: 1 for the committed ones, decaying to 0 at the end of the overlap.

    step          0 …  delay − 1   delay  …            end − 1   end …
    exp           1       1        cᵢ·(e^cᵢ − 1)/(e − 1)            0        cᵢ = (end − i) / (end − delay + 1)
    linear        1       1        cᵢ                              0
    ones          1       1        1                      1       0
    zeros         1       1        0                      0       0

*frozen*: the committed steps follow the straight line from their noise to Y, whatever the denoiser says, so that they
are Y at s = 0; the others are denoised beside them.

Left-over actions are absolute and physical; they are normalized relative to the state at which the *new* chunk begins.

Legend: `B` robots, `L` chunk steps, `R` steps left over, `D`/`A` real and padded action dims, `S` real state dims.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vla_mot.errors import ConfigError
from vla_mot.flow.solvers import Guide, Velocity
from vla_mot.infer.chunks import Bend, Chunks
from vla_mot.options import at_least, fit
from vla_mot.robots.processor import Processor

Schedule = Literal["exp", "linear", "ones", "zeros"]
Mode = Literal["guided", "frozen"]
Jacobian = Literal["exact", "identity"]


@dataclass(frozen=True)
class RtcConfig:
    """How the next chunk is made to agree with the last one.

    mode: `guided` or `frozen`. The others are of `guided`:
    max_guidance: β, an upper bound of the pull; the paper takes 5, LeRobot 10.
    schedule: of the soft mask.
    overlap: steps of the left-over chunk that are attended to at most; None: all of them.
    jacobian: `exact` goes back through the denoiser, as in the paper, and costs a backward pass per step. `identity`
        takes ∂x̂₀/∂x as 1, as LeRobot 0.6's processor in effect does, and costs nothing.
    """

    mode: Mode = "guided"
    max_guidance: float = 5.0
    schedule: Schedule = "exp"
    overlap: int | None = None
    jacobian: Jacobian = "exact"

    def __post_init__(self) -> None:
        for name, kind in (("mode", Mode), ("schedule", Schedule), ("jacobian", Jacobian)):
            fit(kind, f"rtc.{name}", getattr(self, name))
        if not 0 < self.max_guidance < math.inf:
            raise ConfigError(f"rtc.max_guidance must be a positive, finite number, got {self.max_guidance}.")
        if self.overlap is not None:
            at_least(1, {"rtc.overlap": self.overlap})


class RealTimeChunks(Chunks):
    """Executes the newest chunk, and asks for one that goes on where it left off."""

    def __init__(self, every: int, config: RtcConfig) -> None:
        super().__init__(every)
        self._config = config

    def continuation(self, step: int, delay: int, state: Tensor, processor: Processor) -> Bend | None:
        """See `Chunks.continuation`."""
        if self._newest is None:
            return None
        left_over, state = self._newest.rest(step), state.clone()  # the caller may fill the same memory again
        return lambda noise: continue_chunk(self._config, left_over, delay, state, noise, processor)


def continue_chunk(
    config: RtcConfig, left_over: Tensor, delay: int, state: Tensor, noise: Tensor, processor: Processor
) -> Guide | None:
    """The guide that makes a new chunk go on with the last one's actions; None where nothing is left of it.

    left_over: `(B, R, D)`, absolute in physical units, the first of them for the step at which the new chunk begins.
    delay: how many of them will have been executed when the new chunk arrives. state: `(B, S)` in physical units, at
    which the new chunk begins: what its deltas are relative to. noise: `(B, L, A)` that the new chunk starts from.
    """
    chunk, width = noise.shape[1:]
    left_over = left_over[:, :chunk]
    if left_over.shape[1] == 0:
        return None
    steps = left_over.shape[1]
    target = torch.zeros_like(noise, dtype=torch.float32)
    target[:, :steps] = processor.actions(left_over.to(noise.device).float(), state.to(noise.device).float())
    real = torch.arange(width, device=noise.device) < processor.embodiment.action_dim
    if config.mode == "frozen":
        committed = torch.arange(chunk, device=noise.device) < min(delay, steps)
        return freeze(target, noise.float(), committed[:, None] & real)
    end = min(steps, config.overlap or steps)
    weights = prefix_weights(config.schedule, delay, end, chunk).to(noise.device)[:, None] * real
    return pull(target, weights, config.max_guidance, exact=config.jacobian == "exact")


def prefix_weights(schedule: Schedule, delay: int, end: int, total: int) -> Tensor:
    """The soft mask `(total,)` float32 over the steps of a chunk, drawn above. Needs end ≤ total."""
    start = min(delay, end)
    step = torch.arange(total, dtype=torch.float32)
    linear = ((end - step) / (end - start + 1)).clamp(0, 1)
    between = {
        "exp": linear * torch.expm1(linear) / (math.e - 1),
        "linear": linear,
        "ones": torch.ones(total),
        "zeros": torch.zeros(total),
    }[schedule]
    return torch.where(step < start, 1.0, between) * (step < end)


def pull(target: Tensor, weights: Tensor, max_guidance: float, *, exact: bool = True) -> Guide:
    """Draw a flow towards `target` `(B, L, A)`, normalized, where `weights` `(L, A)` say so.

    exact: go back through the denoiser, which needs gradients: not under `torch.inference_mode`.
    """

    def guide(velocity_at: Velocity) -> Velocity:
        def bent(x: Tensor, level: Tensor) -> Tensor:
            s = level.to(x.dtype).clamp(0, 1)[:, None, None]  # rounding may lead below 0
            if exact:
                velocity, correction = _through(velocity_at, x, level, s, target, weights)
            else:
                velocity = velocity_at(x, level)
                correction = (target - (x - s * velocity)) * weights
            strength = (((1 - s) ** 2 + s**2) / (s * (1 - s))).clamp(max=max_guidance)
            return velocity - strength * correction

        return bent

    return guide


def _through(
    velocity_at: Velocity, x: Tensor, level: Tensor, s: Tensor, target: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The velocity and the weighted error of its guess, carried back through the denoiser; `(B, L, A)` both."""
    if torch.is_inference_mode_enabled():
        raise ConfigError(
            "guided real-time chunking goes back through the denoiser and needs gradients: call it under "
            "torch.no_grad() instead of torch.inference_mode(), or choose jacobian='identity' or mode='frozen'."
        )
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        velocity = velocity_at(x, level)
        guess = x - s * velocity
        error = (target - guess.detach()) * weights
        (correction,) = torch.autograd.grad(guess, x, error)
    return velocity.detach(), correction


def freeze(target: Tensor, noise: Tensor, committed: Tensor) -> Guide:
    """Lead the places where `committed` `(L, A)` bool straight from `noise` to `target`, both `(B, L, A)`."""

    def guide(velocity_at: Velocity) -> Velocity:
        return lambda x, level: torch.where(committed, noise - target, velocity_at(x, level))

    return guide

"""Passes of training of which only shapes and bytes are real: torch's fake tensors instead of numbers.

They go the way of real ones: the same operations, the same autocast, the same saved tensors. They are tensors of the
CPU, which every machine has; where CUDA keeps other tensors than the CPU does, `AsOnCuda` says so.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vla_mot.model.model import VlaMotModel
from vla_mot.model.objective import draw_noise, global_counts, objective
from vla_mot.nn.mot import JointLayer
from vla_mot.nn.recompute import Recompute, recomputed
from vla_mot.train.batches import Batches
from vla_mot.train.config import TrainConfig
from vla_mot.train.gathering import GRADIENTS, Gathering
from vla_mot.train.live_bytes import LiveBytes
from vla_mot.train.parallel import autocast
from vla_mot.train.planned import stand_in

ACTIVATIONS = "activations"
_KNOWN = "weights"  # there before the pass: no part of what it makes
_CUDA_BLOCK = 512  # bytes: CUDA's caching allocator hands out multiples of it
_BIAS_ALIGNMENT = 8  # numbers: CUDA's memory-efficient attention wants rows of a mask padded to it


@contextmanager
def without_numbers(model: nn.Module) -> Iterator[None]:
    """Put fake tensors in the place of a model's own, which lie on meta; for good. Meanwhile all new ones are fake."""
    with FakeTensorMode(), torch.autograd.set_multithreading_enabled(False):
        for module in model.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                fake = torch.empty(weight.shape, dtype=weight.dtype)
                setattr(module, name, nn.Parameter(fake, requires_grad=weight.requires_grad))
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
        yield


def rehearse(
    model: VlaMotModel,
    train: TrainConfig,
    batches: Batches,
    latents: torch.dtype | None = None,
    *,
    holds_gradients: bool = False,
    shards: int = 1,
) -> LiveBytes:
    """Run one pass over a micro batch; returns what was alive meanwhile: `gradients`, `activations`, `gathered`.

    model: on the meta device, as `train.planned` makes it; it cannot be used afterwards. latents: see `stand_in`.
    holds_gradients: those of all trained weights are there, whole, from the start, as in the last of several passes.
    shards: of the weights; `train.gathering` says what of the others' is here meanwhile.
    """
    on_cuda = torch.device(train.device).type == "cuda"
    live = LiveBytes(ACTIVATIONS, block=_CUDA_BLOCK if on_cuda else 1)
    with ExitStack() as stack:
        stack.enter_context(without_numbers(model))
        live.count([*model.parameters(), *model.buffers()], _KNOWN)
        _watch_gradients(model, live, holds_gradients, shards)
        stack.enter_context(live)
        if on_cuda:
            stack.enter_context(AsOnCuda())
            for layer in model.stack.layers:
                cast(JointLayer, layer).program = _run_on_cuda
        _pass(model, train, batches, latents)
    del live.peak[_KNOWN], live.most[_KNOWN]
    return live


def _pass(model: VlaMotModel, train: TrainConfig, batches: Batches, latents: torch.dtype | None) -> None:
    """What `train.step` does in one pass, with a rank's whole share of the batch on its device."""
    share = stand_in(model, batches.share, "cpu", latents)
    part = share[: batches.micro_batch] if batches.accumulate > 1 else share
    counts = global_counts(*model.loss_counts(share, train.action_draws))
    noise, level = draw_noise(part, train.action_draws, train.seed, 0, model.config.noise_level)
    with autocast(train.parallel, "cpu"):
        losses = model(part, noise, level)
    objective(losses, train.foresight_weight, counts).total.backward()


def _watch_gradients(model: VlaMotModel, live: LiveBytes, holds_gradients: bool, shards: int) -> None:
    """A gradient is one as soon as it is its weight's; until then it is what the backward pass works with."""

    def settle(weight: Tensor) -> None:
        assert weight.grad is not None
        live.settle(weight.grad, GRADIENTS)

    act = Gathering(model, live, shards).settle if shards > 1 else settle
    for weight in model.parameters():
        if weight.requires_grad:
            if holds_gradients:
                weight.grad = torch.empty_like(weight)
                live.settle(weight.grad, GRADIENTS)
            weight.register_post_accumulate_grad_hook(act)


def _run_on_cuda(layer: JointLayer, recompute: Recompute, *args: Any) -> Any:
    """A layer as it is run, with `AsOnCuda` in what the backward pass recomputes, too."""

    def joint(*inner: Any) -> Any:
        with AsOnCuda():
            return layer.joint(*inner)

    return recomputed(recompute, joint, *args)


class AsOnCuda(TorchFunctionMode):
    """What CUDA's kernels keep for the backward pass where the CPU's keep something else.

    Attention: the memory-efficient kernel, also for a mask. (Without a mask and in bfloat16 torch takes the flash
    kernel, which keeps as much.) The root-mean-square norm: one kernel, which keeps its input and one number per row.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return efficient_attention(*args, **kwargs)
        if func is F.rms_norm:
            return fused_rms_norm(*args, **kwargs)
        return func(*args, **kwargs)


def efficient_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
) -> Tensor:
    """`F.scaled_dot_product_attention` by CUDA's memory-efficient kernel; a mask becomes a bias `(B, H, Q, K)` of the
    queries' dtype, whose rows are padded, and which is kept for the backward pass."""
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
    bias = None
    if attn_mask is not None:
        bias = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, float("-inf"))
        columns = bias.shape[-1]
        if spare := -columns % _BIAS_ALIGNMENT:
            bias = F.pad(bias, (0, spare))[..., :columns]
        bias = bias.expand(*query.shape[:2], -1, -1)
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    return kernel(query, key, value, bias, compute_log_sumexp=True, scale=options.get("scale"))[0]


def fused_rms_norm(
    x: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """`F.rms_norm` by CUDA's kernel."""
    return cast(Tensor, _FusedRMSNorm.apply(x, weight))


class _FusedRMSNorm(torch.autograd.Function):
    """Makes and keeps what the kernel does, without numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        per_row = torch.empty(*x.shape[:-1], 1)
        ctx.save_for_backward(x, weight, per_row)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, _ = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (torch.empty_like(x) if needs[0] else None, torch.empty_like(weight) if needs[1] else None)

"""The floor of a policy call: what this device needs at the least for the operations and the bytes of every stage.

Operations: the products that a stage needs, two per multiply-add, with whole attention matrices of the tokens that see
each other. Bytes: the weights that it reads, once per pass, and the keys and values that it writes or reads; what lies
between two layers is taken to stay on the chip. Rates: of a large matrix product and of a large copy (reads and writes
counted), measured on the device at hand.

Legend: `B` batch, `U`/`G` understanding and generation tokens, `L` chunk steps, `X` position axes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from baseline.sizes import build
from common import head, row, synchronize
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from acting.scene import Setting
from acting.timing import percentiles
from vla_mot.model.model import VlaMotModel
from vla_mot.nn.cache import KVCache
from vla_mot.nn.projection import Projection
from vla_mot.nn.rope import rotation
from vla_mot.robots.images import to_unit
from vla_mot.train.flops import count_flops
from vla_mot.train.planned import stand_in
from vla_mot.train.rehearsal import without_numbers

_COPIED = {"cpu": 2**27, "cuda": 2**31}  # bytes
_TRIES = 10


@dataclass(frozen=True)
class Work:
    """Of one stage of a call: floating-point operations and bytes."""

    flops: float
    bytes: float

    def times(self, count: int) -> "Work":
        """Of so many passes."""
        return Work(count * self.flops, count * self.bytes)


@dataclass(frozen=True)
class Rates:
    """FLOP/s of matrix products and bytes/s of copies."""

    flops: float
    bytes: float

    def seconds(self, work: Work) -> tuple[float, float]:
        """That the operations take, and that the bytes take; the floor is the larger one."""
        return work.flops / self.flops, work.bytes / self.bytes


def copy_rate(device: str) -> float:
    """Bytes/s that this device reads and writes in a large copy: the best of ten."""
    size = _COPIED["cuda" if device.startswith("cuda") else "cpu"]
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target, best = torch.ones_like(source), float("inf")
    for _ in range(_TRIES):
        synchronize(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size / best


@torch.no_grad()
def work_of(size: str, dtype: torch.dtype, setting: Setting, foresight: str = "") -> dict[str, Work]:
    """Stage → its work in one call. The model is counted on paper: no weights, no device."""
    model = build(size, "meta", foresight).eval().cast(dtype)
    chunk = setting.chunk or model.config.chunk_size
    model.config = replace(model.config, num_views=setting.views, chunk_size=chunk)
    with without_numbers(model):
        seen = stand_in(model, setting.batch, "cpu").observation
        found, results = {}, {}
        for stage, act in {
            "vision": lambda: model.understanding(
                to_unit(seen.images[:, :, 1]), seen.view_mask, seen.token_ids, seen.token_mask
            ).embeddings,
            "encode": lambda: model.encode_frames(seen.images),
        }.items():
            found[stage], results[stage] = _work(act)
        stack = _Stack(model)
        found["understanding"], told = _work(
            lambda: stack.run({"understanding": results["vision"]}, outputs=())[1]
        )
        found["foresight"], prefix = _work(lambda: stack.generate(results["encode"], seen.state, told))
        once, _ = _work(lambda: stack.denoise(setting.batch, chunk, prefix))
        kept = _bytes(told.keys + told.values)
        added = _bytes(prefix.keys + prefix.values) - kept
    found["understanding"] = _plus(found["understanding"], kept)
    found["foresight"] = _plus(found["foresight"], kept + added)
    found["denoise"] = _plus(once, kept + added).times(setting.steps)
    return found


class _Stack:
    """The joint stack, run block by block, as an engine may run it."""

    def __init__(self, model: VlaMotModel) -> None:
        self.model = model
        # Two layers with nothing between them are one map, which is made once.
        made = model.generation.patch_map()
        self.patch_map = Projection(*(nn.Parameter(part, False) for part in (made.weight, made.bias)))

    def run(
        self, hidden: dict[str, Tensor], outputs: Sequence[str], cache: KVCache | None = None
    ) -> tuple[dict[str, Tensor], KVCache]:
        """Pass these tokens against those that are cached."""
        first = next(iter(hidden.values()))
        batch, queries = first.shape[0], sum(x.shape[1] for x in hidden.values())
        geometry = self.model.understanding.geometry
        axes = max(1, len(geometry.rope.sections))
        places = torch.zeros(axes, batch, queries, dtype=torch.int64)
        turn = rotation(places, geometry.head_dim, geometry.rope)
        mask = torch.ones(batch, queries, queries + (0 if cache is None else len(cache)), dtype=torch.bool)
        return self.model.stack(hidden, turn, mask, outputs=outputs, kv_cache=cache)

    def generate(self, latents: Tensor, state: Tensor, told: KVCache) -> KVCache:
        """Generation and state tokens behind the understanding's, and the foresight."""
        hidden = {
            "generation": self.model.generation.embed_by_map(latents, self.patch_map),
            "action": self.model.action.embed_state(state),
        }
        states, cache = self.run(hidden, ("generation",), told)
        head = self.model.generation
        head.predict_by_map(states["generation"], head.cell_map())
        return cache

    def denoise(self, batch: int, chunk: int, prefix: KVCache) -> Tensor:
        """One velocity."""
        x = torch.zeros(batch, chunk, self.model.config.max_action_dim)
        hidden = {"action": self.model.action.embed_actions(x, torch.ones(batch))}
        states, _ = self.run(hidden, ("action",), prefix)
        return self.model.action.predict(states["action"])


def _work(act: Callable[[], Any]) -> tuple[Work, Any]:
    """Operations of what is done, and bytes of the weights that it reads; and its result."""
    with _Reading() as reading:
        flops, result = count_flops(act)
    return Work(flops, _bytes(reading.weights.values())), result


class _Reading(TorchFunctionMode):
    """Notes the weights that functions of torch are given. Of an embedding only some rows are read: left out."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[int, nn.Parameter] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and func is not F.embedding:
            given = tree_leaves((args, kwargs or {}))
            self.weights |= {id(one): one for one in given if isinstance(one, nn.Parameter)}
        return result


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _plus(work: Work, more: int) -> Work:
    return replace(work, bytes=work.bytes + more)


def show_work(work: Mapping[str, Work]) -> None:
    """Print what every stage has to do."""
    head("stage", "GFLOP", "GB")
    for stage, one in work.items():
        row(stage, f"{one.flops / 1e9:.1f}", f"{one.bytes / 1e9:.3f}")


def show_floor(
    work: Mapping[str, Work],
    rates: Rates,
    stages: Mapping[str, Mapping[str, Sequence[float]]],
    calls: Mapping[str, Sequence[float]],
) -> None:
    """Print every stage's floor, and how many times that every variant takes (p50)."""
    print()
    print("floor: the larger of both; of every variant, p50 ms (times the floor)")
    head("stage", "GFLOP", "GB", "by operations ms", "by bytes ms", "floor ms", *stages)
    floors = {stage: max(rates.seconds(one)) for stage, one in work.items()}
    joined = {stage: (stage,) for stage in work} | {"prefill": ("understanding", "foresight")}
    for stage, parts in joined.items():
        whole = Work(sum(work[part].flops for part in parts), sum(work[part].bytes for part in parts))
        floor = sum(floors[part] for part in parts)
        cells = [_times(told.get(stage), floor) for told in stages.values()]
        _row(stage, whole, rates, floor, cells)
    whole = Work(sum(one.flops for one in work.values()), sum(one.bytes for one in work.values()))
    floor = sum(floors.values())
    _row("whole call", whole, rates, floor, [_times(calls.get(name), floor) for name in stages])
    print(
        f"floor of a call {1e3 * floor:.2f} ms, {1 / floor:.1f} Hz; a call holds preprocessing too, a floor does not"
    )


def _row(stage: str, work: Work, rates: Rates, floor: float, cells: Sequence[str]) -> None:
    parts = (f"{1e3 * part:.3f}" for part in rates.seconds(work))
    row(stage, f"{work.flops / 1e9:.4g}", f"{work.bytes / 1e9:.4g}", *parts, f"{1e3 * floor:.3f}", *cells)


def _times(seconds: Sequence[float] | None, floor: float) -> str:
    if seconds is None:
        return ""
    middle = percentiles(seconds)[0]
    return f"{1e3 * middle:.2f} ({middle / floor:.1f}×)"

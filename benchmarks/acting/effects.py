"""What other and fewer integration steps do to the actions of a trained policy, and what they save.

On observations of a dataset that training held out: the chunks' executed steps, in the robot's own units, beside those
of 50 Euler steps and beside those of the policy's own sampler from the same noise; and beside what was demonstrated.
Parts that are left out follow. The last row tells how far two noises lie apart, which is the scale of such differences.

Legend: `N` chunks, `L` steps, `D` action dims.
"""

import importlib.util
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from common import head, row
from torch import Tensor

from acting.scene import Request
from acting.timing import race
from vla_mot.flow.solvers import Solver, evaluated_levels
from vla_mot.infer.policy import Policy

REFERENCE = "euler 50"
SAMPLERS = (
    *(("euler", steps) for steps in (50, 30, 20, 10, 6, 5, 4, 3, 2, 1)),
    *((solver, steps) for solver in get_args(Solver)[1:] for steps in (5, 3, 2, 1)),
)
_BATCH = 32


@dataclass(frozen=True)
class Held:
    """Held-out moments: what was seen, and the executed steps of what was done `(N, L, D)`, where `real` `(N, L)`."""

    images: dict[str, Tensor]
    state: Tensor
    tasks: tuple[str, ...]
    actions: Tensor
    real: Tensor


def show_effects(
    checkpoint: str, dataset: str, cache: str, samples: int, draws: int, repeats: int, kind: str
) -> None:
    """Measure and print the table, or say what is missing. draws: noises per sample. kind: of engine."""
    missing = [place for place in (checkpoint, dataset) if not Path(place).exists()]
    if missing:
        print(
            f"\nEffects on actions were not measured: there is no {' and no '.join(missing)}; see `make demo`."
        )
        return
    policy = Policy.from_pretrained(checkpoint)
    held = held_out(policy, checkpoint, dataset, cache, samples)
    usual = name_of(policy)
    asked = ways(policy, kind)
    told = {name: chunks(way, held, draws) for name, way in asked.items()}
    seconds = race(asked, _request(policy, held, [0], 0), repeats, warmup=2)
    print(
        f"\n{checkpoint} on {len(held.tasks)} held-out moments of {dataset}, {draws} noises each, executed steps only; "
        f"{kind} engine, ms at batch 1. Mean absolute difference (99th percentile)."
    )
    head("less work", "velocities", "ms / call", f"to {REFERENCE}", f"to {usual}", "to demonstration")
    done = held.actions.repeat(draws, 1, 1)
    for name, mine in told.items():
        sampler = asked[name].spec.sampler
        row(
            name,
            len(evaluated_levels(sampler.num_steps, sampler.solver)),
            f"{1e3 * statistics.median(seconds[name]):.2f}",
            *(_apart(policy, mine - other, held) for other in (told[REFERENCE], told[usual], done)),
        )
    other = chunks(asked[usual], held, draws, first=draws)
    row(
        f"{usual}, other noise",
        "",
        "",
        "",
        *(_apart(policy, other - mine, held) for mine in (told[usual], done)),
    )
    _show_fast_and_slow(policy, _request(policy, held, [0], 0), repeats, kind)


def _show_fast_and_slow(policy: Policy, request: Request, repeats: int, kind: str) -> None:
    """What a call costs that looks with the understanding expert, one that does not, and looking ahead of a call."""
    fast = policy.compile(kind=kind, understanding_every=1, understanding_ahead=True)
    asked, words = (request.images, request.state, request.instructions), request.noise
    found: dict[str, list[float]] = {
        "a call that understands": [],
        "one that does not": [],
        "looking ahead": [],
    }
    for session in range(repeats + 2):
        for name, act in {
            "a call that understands": lambda own=session: fast.predict(*asked, words, session=own),
            "one that does not": lambda own=session: fast.predict(*asked, words, session=own),
            "looking ahead": lambda own=session: fast.look(*asked, own),
        }.items():
            start = time.perf_counter()
            act()
            found[name].append(time.perf_counter() - start)
    told = (f"{name} {1e3 * statistics.median(took[2:]):.2f} ms" for name, took in found.items())
    print(f"\nFast and slow, {kind} engine, batch 1: {', '.join(told)}.")


def ways(policy: Policy, kind: str) -> dict[str, Policy]:
    """The policy with other samplers, and with parts left out; its own sampler is among them."""
    fast = policy.compile(kind=kind)
    sampled = (_with(fast, *sampler) for sampler in SAMPLERS)
    found = {name_of(way): way for way in (*sampled, fast)}
    usual = name_of(policy)
    less = {
        f"{usual}, no foresight": policy.compile(kind=kind, foresight=False),
        f"{usual}, no generation": policy.compile(kind=kind, generation=False),
    }
    if importlib.util.find_spec("torchao") is not None:
        for rounded in ("int8", "fp8"):
            less[f"{usual}, {rounded} action expert"] = policy.compile(kind=kind, quantize=rounded)
    return found | less


def name_of(policy: Policy) -> str:
    """A policy by its sampler."""
    return f"{policy.spec.sampler.solver} {policy.spec.sampler.num_steps}"


def held_out(policy: Policy, checkpoint: str, dataset: str, cache: str, samples: int) -> Held:
    """Moments spread evenly over the episodes that the policy's training held out (all, where none were)."""
    from vla_mot.commands.foresight import ForesightData, open_data
    from vla_mot.commands.mixing import spread_rows

    note = Path(checkpoint) / "training.json"
    told: dict[str, Any] = json.loads(note.read_text())["data"] if note.is_file() else {}
    split = told.get("validation_fraction", 0.0), told.get("split_seed", 0)
    scored = open_data(policy, ForesightData(Path(dataset), samples, Path(cache), *split)).scored
    windows = scored.__getitems__(spread_rows(scored, samples))
    executed = policy.spec.sampler.n_action_steps
    keys = [key for _, key in policy.robot.embodiment.present_cameras]
    return Held(
        images={key: windows.images[:, :2, view] for view, key in enumerate(keys)},
        state=windows.state,
        tasks=windows.tasks,
        actions=windows.actions[:, :executed],
        real=windows.step_mask[:, :executed],
    )


def chunks(policy: Policy, held: Held, draws: int, first: int = 0) -> Tensor:
    """Executed steps of what the policy does, `(draws · N, L, D)` in physical units, from noises that never change."""
    found = []
    for draw in range(first, first + draws):
        for rows in torch.arange(len(held.tasks)).split(_BATCH):
            request = _request(policy, held, rows.tolist(), draw)
            found.append(policy.predict(*_arguments(request)).actions.clone())
    return torch.cat(found)[:, : policy.spec.sampler.n_action_steps]


def _request(policy: Policy, held: Held, rows: Sequence[int], draw: int) -> Request:
    images = {key: pictures[list(rows)] for key, pictures in held.images.items()}
    tasks = tuple(held.tasks[row] for row in rows)
    return Request(images, held.state[list(rows)], tasks, policy.noise(rows, draw))


def _arguments(request: Request) -> tuple[Any, ...]:
    return request.images, request.state, request.instructions, request.noise


def _with(policy: Policy, solver: Solver, steps: int) -> Policy:
    return policy.with_sampler(solver=solver, num_steps=steps)


def _apart(policy: Policy, difference: Tensor, held: Held) -> str:
    """Mean and 99th percentile of |difference| `(draws · N, L, D)`, by unit."""
    units = [unit for field in policy.robot.embodiment.action for unit in field.units]
    real = held.real.repeat(len(difference) // len(held.real), 1)
    cells = []
    for unit in dict.fromkeys(units):
        dims = [number for number, own in enumerate(units) if own == unit]
        sizes = difference[..., dims].abs()[real].flatten().double()
        cells.append(f"{sizes.mean():.2e} ({torch.quantile(sizes, 0.99):.2e}) {unit}")
    return ", ".join(cells)

"""What is compared in closed loop: the policy, the same with something taken away, and two bounds."""

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vla_mot.commands import simulators
from vla_mot.commands.console import progress
from vla_mot.data.quiet import quiet_media
from vla_mot.errors import ConfigError, unknown_name
from vla_mot.evaluate.closed_loop import run_episodes
from vla_mot.evaluate.controllers import Controller, PolicyController
from vla_mot.evaluate.results import Arm, EpisodeResult
from vla_mot.infer.chunking import NAIVE, Chunking
from vla_mot.infer.policy import Policy
from vla_mot.infer.session import HISTORY_FRAMES
from vla_mot.model.model import VlaMotModel
from vla_mot.options import at_least, within

CONTROLLERS = ("policy", "untrained", "expert")
INSTRUCTIONS = ("own", "other")
MAX_DELAY_MS = 60_000
EXPERT_HORIZON = 10  # steps of a plan that the expert executes when no policy says otherwise


@dataclass(frozen=True)
class ArmSpec:
    """Who acts, which history frame it sees, which instruction it is given, and how late and how its chunks come."""

    controller: str = "policy"
    history: str = "past"
    instruction: str = "own"
    chunks: Chunking = NAIVE
    delay_ms: float = 0.0
    remember_latents: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("controller", self.controller, CONTROLLERS),
            ("history", self.history, HISTORY_FRAMES),
            ("instruction", self.instruction, INSTRUCTIONS),
        ):
            if value not in known:
                raise ConfigError(unknown_name(name, value, known))
        within(0, MAX_DELAY_MS, {"delay_ms": self.delay_ms})

    @property
    def name(self) -> str:
        """Short, for folders: `policy`, `no_history`, `other_instruction`, `untrained`, `expert`, or a mixture; and
        `rtc`, `200ms` where the chunks come in another way or late."""
        changed = {
            "no_history": self.history == "present",
            "other_instruction": self.instruction == "other",
            self.chunks.method: self.chunks.method != NAIVE.method,
            f"{self.delay_ms:g}ms": self.delay_ms > 0,
        }
        parts = [name for name, is_so in changed.items() if is_so]
        if self.controller != "policy" or not {"no_history", "other_instruction"}.intersection(parts):
            parts.insert(0, self.controller)
        return "-".join(parts)

    @property
    def label(self) -> str:
        """For people."""
        who = {"policy": "trained policy", "untrained": "untrained policy", "expert": "scripted expert"}
        parts = [who[self.controller]]
        if self.history == "present":
            parts.append("history replaced by the present")
        if self.instruction == "other":
            parts.append("given the other object's instruction")
        if self.chunks.method != NAIVE.method:
            parts.append(self.chunks.label)
        if self.delay_ms:
            parts.append(f"{self.delay_ms:g} ms late")
        return ", ".join(parts)


DEMO_ARMS = (
    ArmSpec(),
    ArmSpec(history="present"),
    ArmSpec(instruction="other"),
    ArmSpec(controller="untrained"),
    ArmSpec(controller="expert"),
)


@dataclass(frozen=True)
class Episodes:
    """Which episodes are run, and how: first seed, how many, how many side by side, how many are filmed."""

    episodes: int = 100
    seed: int = 100_000
    parallel: int = 20
    videos: int = 4

    def __post_init__(self) -> None:
        at_least(1, {"episodes": self.episodes, "parallel": self.parallel})
        at_least(0, {"seed": self.seed, "videos": self.videos})


def run_arm(
    arm: ArmSpec, policy: Policy | None, env: Mapping[str, Any], episodes: Episodes, films: Path
) -> Arm:
    """Run one arm over all episodes, with a progress bar. policy: None only for the expert."""
    controller = _controller(arm, policy, env)
    seeds = range(episodes.seed, episodes.seed + episodes.episodes)
    with progress("evaluate") as advance, quiet_media():
        results = run_episodes(
            simulators.make_env(env),
            controller,
            seeds,
            parallel=episodes.parallel,
            video_seeds=seeds[: episodes.videos],
            video_folder=films,
            on_episode=_counter(len(seeds), advance),
        )
    return Arm(arm.name, arm.label, tuple(results))


def _counter(total: int, advance: Callable[[int, int, str], None]) -> Callable[[EpisodeResult], None]:
    done = successes = 0
    advance(0, total, "")  # says how many there are, and when they began

    def count(result: EpisodeResult) -> None:
        nonlocal done, successes
        done, successes = done + 1, successes + result.success
        advance(done, total, f"{successes} succeeded")

    return count


def _controller(arm: ArmSpec, policy: Policy | None, env: Mapping[str, Any]) -> Controller:
    if arm.controller == "expert":
        if arm.history != "past" or arm.instruction != "own":
            raise ConfigError("the scripted expert looks at no history and at no instruction but its own.")
        if arm.chunks.method != NAIVE.method or arm.delay_ms:
            raise ConfigError("the scripted expert is never late: leave chunks and delay_ms out.")
        horizon = policy.spec.sampler.n_action_steps if policy else EXPERT_HORIZON
        simulator, _ = simulators.find(env)
        return simulator.expert(horizon)
    if policy is None:
        raise ConfigError(f"checkpoint must be given for controller={arm.controller}: write checkpoint=….")
    acting = untrained(policy) if arm.controller == "untrained" else policy
    delay = delay_steps(arm.delay_ms, env) if arm.delay_ms else 0
    return PolicyController(
        acting, arm.history, arm.instruction, arm.chunks, delay, remember_latents=arm.remember_latents
    )


def delay_steps(milliseconds: float, env: Mapping[str, Any]) -> int:
    """Control steps of an environment that a latency lasts, the last one counted whole."""
    with closing(simulators.make_env(env)()) as world:
        rate = world.metadata["render_fps"]
    return math.ceil(milliseconds / 1000 * rate - 1e-9)


def untrained(policy: Policy) -> Policy:
    """The same model with fresh random weights (seed 0), behind the same engine; the foresight tokenizer is frozen, so
    it stays."""
    torch.manual_seed(0)
    model = VlaMotModel(policy.spec.model)
    if model.tokenizer is not None:
        model.tokenizer.load_state_dict(policy.model.required_tokenizer().state_dict())
    fresh = Policy(model.to(policy.device), policy.spec, policy.robot)
    return fresh if policy.engine is None else fresh.with_engine(policy.engine.config)

"""`vla-mot evaluate`: closed loop over seeded episodes, and foresight on a dataset if one is given."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_mot.commands import arms, folders, foresight, simulators, tables
from vla_mot.commands.console import console, show_library_log
from vla_mot.commands.devices import require_device
from vla_mot.commands.engines import EAGER, described, remembers, with_engine
from vla_mot.commands.repositories import locate
from vla_mot.commands.settings import section
from vla_mot.errors import ConfigError
from vla_mot.evaluate.controllers import require_robot
from vla_mot.evaluate.machine import describe_machine
from vla_mot.evaluate.results import POLICY_HASH, Evaluation
from vla_mot.flow.solvers import Solver
from vla_mot.hub.describe import sampling
from vla_mot.hub.manifest import identity
from vla_mot.hub.remote import fetch, origin
from vla_mot.infer.chunking import Chunking, Method
from vla_mot.infer.policy import Policy
from vla_mot.infer.rtc import RtcConfig
from vla_mot.options import at_least, fit
from vla_mot.robots.robot import Robot


@dataclass(frozen=True)
class EvaluateConfig:
    """See conf/evaluate.yaml."""

    output: Path
    env: Mapping[str, Any]
    checkpoint: Path | None = None
    robot: str | None = None
    action_mode: str | None = None
    controller: str = "policy"
    history: str = "past"
    instruction: str = "own"
    episodes: int = 100
    seed: int = 100_000
    parallel: int = 20
    videos: int = 4
    num_steps: int | None = None
    solver: Solver | None = None
    n_action_steps: int | None = None
    chunks: str = "naive"
    ensemble_decay: float = 0.01
    rtc: RtcConfig = field(default_factory=RtcConfig)
    delay_ms: float = 0.0
    remember_latents: bool = False
    engine: Mapping[str, Any] = field(default_factory=lambda: {"kind": EAGER})
    device: str = "cpu"
    dataset: Path | None = None
    foresight_samples: int = 512
    cache: Path | None = None

    def __post_init__(self) -> None:
        require_device("device", self.device)
        at_least(1, {"foresight_samples": self.foresight_samples})
        if remembers(self.engine) and self.parallel > 1:
            raise ConfigError(
                f"engine {described(self.engine)!r} with parallel={self.parallel}: whenever one of the robots that run "
                "side by side ends, what was understood for all of them is renewed, sooner than it would be for one. "
                "Set parallel=1."
            )

    def arm(self) -> arms.ArmSpec:
        """What is evaluated."""
        chunks = Chunking(
            fit(Method, "chunks", self.chunks), ensemble_decay=self.ensemble_decay, rtc=self.rtc
        )
        return arms.ArmSpec(
            self.controller, self.history, self.instruction, chunks, self.delay_ms, self.remember_latents
        )


def run(config: dict[str, Any], overrides: list[str]) -> None:
    """The command."""
    show_library_log()
    settings = section(EvaluateConfig, "", config)
    folders.require_unused(settings.output)
    arm = settings.arm()
    episodes = arms.Episodes(settings.episodes, settings.seed, settings.parallel, settings.videos)
    if settings.dataset is not None and settings.checkpoint is None:
        raise ConfigError("foresight on dataset=… needs a checkpoint: write checkpoint=….")
    opened = _open(settings)
    policy = opened.policy if opened else None
    frames = None
    if opened is not None and settings.dataset is not None:
        frames = foresight.open_data(
            opened.policy, _foresight_data(settings, settings.dataset, opened.folder)
        )
    console.print(f"{arm.label}: {settings.episodes} episodes from seed {settings.seed}")
    with folders.whole(settings.output) as folder:
        found = arms.run_arm(arm, policy, settings.env, episodes, folder / "videos")
        evaluation = Evaluation((found,), None, provenance(settings, opened))
        evaluation.save(folder)
    tables.show_success(evaluation)
    if frames is not None:
        _score(frames, settings.output)
    console.print(f"results: {settings.output}")


def _score(frames: foresight.Opened, output: Path) -> None:
    """Add the scores of the foresight to results that are kept whatever happens here."""
    kept = f"The results of the episodes are kept in {output}; the scores of its foresight are not."
    try:
        seen = foresight.score(frames)
        if seen is not None:
            seen.save(output)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(kept) from None
    except Exception as error:
        error.add_note(kept)
        raise
    if seen is not None:
        tables.show_foresight(seen)


@dataclass(frozen=True)
class Opened:
    """The policy that is evaluated, and the folder that it was read from."""

    folder: Path
    policy: Policy


def provenance(settings: EvaluateConfig, opened: Opened | None) -> dict[str, str]:
    """How a result was made, as text."""
    return {
        "checkpoint": str(settings.checkpoint),
        **(_identity(opened) if opened else {}),
        **({"robot": settings.robot} if settings.robot else {}),
        **({"engine": described(settings.engine)} if settings.engine["kind"] != EAGER else {}),
        "episodes": f"{settings.episodes} from seed {settings.seed}",
        "environment": ", ".join(f"{key}={value}" for key, value in settings.env.items()),
        "chunks": f"{settings.chunks}, {settings.delay_ms:g} ms late",
        **describe_machine(),
    }


def _identity(opened: Opened) -> dict[str, str]:
    """Which policy it was, also after its run went on or its repository got another commit."""
    source, digest = origin(opened.folder), identity(opened.folder)
    return {
        **({"commit": source.commit} if source else {}),
        **({POLICY_HASH: digest} if digest else {}),
        "sampler": sampling(opened.policy.spec.sampler),
    }


def _open(settings: EvaluateConfig) -> Opened | None:
    if settings.checkpoint is None:
        if settings.robot is not None:
            raise ConfigError("robot=… is one of those that a checkpoint knows: write checkpoint=….")
        return None
    folder = fetch(locate(settings.checkpoint))
    policy = Policy.from_pretrained(
        folder, embodiment=settings.robot, action_mode=settings.action_mode, device=settings.device
    )
    if settings.controller != "expert":
        with closing(simulators.make_env(settings.env)()) as env:
            require_robot(env, _robot(policy).embodiment)
    return Opened(
        folder,
        with_engine(
            policy.with_sampler(
                num_steps=settings.num_steps, n_action_steps=settings.n_action_steps, solver=settings.solver
            ),
            settings.engine,
        ),
    )


def _robot(policy: Policy) -> Robot:
    """The robot to drive. Raises ConfigError where there are several to choose from, or none."""
    try:
        return policy.robot
    except ConfigError as error:
        if len(policy.spec.robots) < 2:
            raise
        known = ", ".join(map(str, policy.spec.robots))
        raise ConfigError(
            f"the checkpoint knows several robots ({known}): write robot=… (and action_mode=…)."
        ) from error


def _foresight_data(settings: EvaluateConfig, dataset: Path, policy: Path) -> foresight.ForesightData:
    """The dataset, split as the run that made the checkpoint did."""
    fraction, seed = folders.split_of(policy) or (0.0, 0)
    return foresight.ForesightData(
        root=dataset,
        samples=settings.foresight_samples,
        cache=settings.cache,
        validation_fraction=fraction,
        split_seed=seed,
    )

"""`vla-mot push`: a checkpoint as it is, and a model card filled from its run, to the Hugging Face Hub."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_mot.commands import folders
from vla_mot.commands.console import console, show_library_log
from vla_mot.commands.settings import section
from vla_mot.commands.stages import FOLDER as STAGES
from vla_mot.errors import CheckpointError
from vla_mot.evaluate.results import POLICY_HASH, Arm, Evaluation, find_evaluations
from vla_mot.hub.card import CardFacts, Success, model_card
from vla_mot.hub.checkpoint import Checkpoint, open_checkpoint
from vla_mot.hub.describe import sampling
from vla_mot.hub.files import read_json
from vla_mot.hub.manifest import compare, identity
from vla_mot.hub.publish import checkpoint_facts
from vla_mot.hub.upload import MESSAGE, push, require_target
from vla_mot.train.checkpoint import STATE_FOLDER
from vla_mot.train.log import read_log

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PushConfig:
    """See conf/push.yaml. The token is the one that is logged in, or HF_TOKEN: never on the command line."""

    checkpoint: Path
    repo: str
    license: str
    license_name: str | None = None
    license_link: str | None = None
    datasets: tuple[str, ...] = ()
    base_model: tuple[str, ...] = ()
    notes: str | None = None
    private: bool | None = None
    revision: str | None = None
    message: str = MESSAGE


def run(config: dict[str, Any], overrides: list[str]) -> None:
    """The command. Everything is looked at before anything is sent."""
    show_library_log()
    wanted = section(PushConfig, "", config)
    policy = folders.find_policy(wanted.checkpoint)
    require_target(wanted.repo, revision=wanted.revision, message=wanted.message)
    found = open_checkpoint(policy)
    card = model_card(facts(found, wanted))
    _require_unchanged(found)
    console.print(f"{policy} → {wanted.repo}")
    url = push(
        policy,
        wanted.repo,
        card=card,
        private=wanted.private,
        revision=wanted.revision,
        message=wanted.message,
    )
    console.print(f"uploaded: {url}")
    console.print(f"to look at it: vla-mot info checkpoint={wanted.repo} revision={url.rsplit('/', 1)[-1]}")


def facts(checkpoint: Checkpoint, wanted: PushConfig) -> CardFacts:
    """What the checkpoint, its run and the evaluations of it say. Raises ConfigError for what would mislead."""
    told: dict[str, Any] = {
        name: getattr(wanted, name)
        for name in ("license", "license_name", "license_link", "datasets", "base_model", "notes")
    }
    run, steps = folders.run_of(checkpoint.folder), _steps(checkpoint.folder)
    if run is not None:
        told["validation"] = _validation(run, steps)
        told["success"] = _success(run, checkpoint)
    return checkpoint_facts(checkpoint, wanted.repo, steps=steps, **told)


def _require_unchanged(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for a folder that differs from its manifest: whoever fetched it could not verify it."""
    if checkpoint.layout == "native" and (problems := compare(checkpoint.folder)):
        raise CheckpointError(
            f"{checkpoint.folder} is not as it was written ({'; '.join(problems)}), so nothing was uploaded. "
            "See `vla-mot verify`."
        )


def _steps(policy: Path) -> int | None:
    """The optimizer steps behind a policy that lies beside the state of its run's trainer."""
    progress = policy.resolve().parent / STATE_FOLDER / "progress.json"
    if not progress.is_file():
        return None
    try:
        return int(read_json(progress)["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{progress} is damaged ({error!r}).") from error


def _validation(run: Path, steps: int | None) -> dict[str, float]:
    """Both losses of the last validation at or before the checkpoint's step."""
    records = [
        r for r in read_log(run) if r["kind"] == "validation" and (steps is None or r["step"] <= steps)
    ]
    if not records:
        return {}
    last = records[-1]
    return {
        f"{name.removesuffix('_loss')} (step {last['step']:,})": value
        for name, value in last.items()
        if name in ("action_loss", "foresight_loss") and isinstance(value, int | float)
    }


def _success(run: Path, checkpoint: Checkpoint) -> tuple[Success, ...]:
    """Closed loop of this very checkpoint, from every evaluation below the run or the demo that it is part of."""
    root = run.parent if (run.parent / STAGES).is_dir() else run
    rows: list[Success] = []
    for place in find_evaluations(root):
        evaluation = Evaluation.load(place)
        if evaluation.provenance.get(POLICY_HASH) == identity(checkpoint.folder):
            own = [arm for arm in evaluation.arms if arm.name == "policy" and arm.episodes]
            rows += [_row(arm, evaluation.provenance, sampling(checkpoint.spec.sampler)) for arm in own]
        else:
            log.warning("%s is left out of the model card: it evaluates another checkpoint", place)
    return tuple(rows)


def _row(arm: Arm, told: Mapping[str, str], usual: str) -> Success:
    """One line of the card. usual: how the checkpoint samples by itself; another way is said."""
    unusual = sampler if (sampler := told.get("sampler", usual)) != usual else ""
    task = ", ".join(filter(None, (told.get("environment", arm.label), unusual)))
    found = arm.success
    return Success(task, found.value, len(arm.episodes), found.low, found.high)

"""Jobs of a cluster: what stands between `--multirun hydra/launcher=…` and ranks that train together.

Hydra's submitit launcher submits a pickled call. SLURM, or for trying out submitit's local executor, starts it once
per task; a task is a rank. What the launcher writes lies in `<output>/launch/`, runs lie where they always do.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException

from vla_mot.commands.console import console
from vla_mot.commands.folders import LAUNCH
from vla_mot.commands.resume import AUTO
from vla_mot.conf_dir import conf_dir
from vla_mot.errors import ConfigError, JobError, unknown_name

GROUP = "hydra/launcher"
_HERE = "basic"  # Hydra's own launcher: one run after the other, in this process
_PLUGIN = "hydra_plugins.hydra_submitit_launcher"


def chosen(overrides: Sequence[Override], folders: Sequence[Path], *, multirun: bool) -> str | None:
    """The launcher that submits jobs, or None where there is none.

    folders: of presets. Raises ConfigError for an unknown one, or without `--multirun`, which Hydra would take for a
    run in this very process; ModuleNotFoundError when submitit is not installed.
    """
    names = [str(override.value()) for override in overrides if override.key_or_group == GROUP]
    if not names or names[-1] == _HERE:
        return None
    name = names[-1]
    ours = {path.stem for folder in folders for path in (folder / GROUP).glob("*.yaml")}
    Plugins.instance()  # they register their launchers
    installed = {Path(entry).stem for entry in ConfigStore.instance().list(GROUP)}
    if name not in ours | installed:
        raise ConfigError(
            f"{unknown_name('launcher', name, ours | installed)} Launchers lie in conf/{GROUP}/."
        )
    if find_spec("hydra_plugins") is None or find_spec(_PLUGIN) is None:
        raise ModuleNotFoundError(f"No module named {_PLUGIN!r}", name="hydra_submitit_launcher")
    if not multirun:
        raise ConfigError(f"{GROUP}={name} submits jobs only with --multirun; add it.")
    return name


def additions(overrides: Sequence[Override], config: str, *, launcher: str | None) -> list[str]:
    """What a multirun needs besides the words that were given.

    A single run lies in `output` itself, or in the folder that is resumed, not in `output/0`. A run that is submitted
    goes on by itself when its job is queued again: `resume=auto`, where the command `config` resumes at all.
    """
    given = {override.key_or_group: override for override in overrides}
    words = []
    by_hand = any(key.startswith("hydra.sweep") for key in given)
    if not by_hand and not any(override.is_sweep_override() for override in overrides):
        words.append("hydra.sweep.subdir='..'")
        if "resume" in given and given["resume"].value() not in (None, AUTO):
            words.append(f"hydra.sweep.dir='${{resume}}/{LAUNCH}'")
    if launcher is not None and "resume" not in given and _resumes(config):
        words.append(f"resume={AUTO}")
    return words


def _resumes(config: str) -> bool:
    return "resume" in yaml.safe_load((conf_dir() / f"{config}.yaml").read_text())


@contextmanager
def submitting(launcher: str | None) -> Iterator[None]:
    """Around the launcher's work: says what it waits for, and turns what goes wrong into sentences.

    Raises ConfigError when there is no SLURM here, JobError when a job ended without a result.
    """
    if launcher is None:
        yield
        return
    from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

    console.print(
        f"{GROUP}={launcher}: what the ranks print lies in {LAUNCH}/<job>/ of the output folder. "
        "This command waits for the end; the jobs do not need it."
    )
    # Hydra then raises what its launcher met, instead of printing it between its own frames.
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "Jobs of SLURM that were submitted stay in its queue: `squeue --me` lists them, `scancel <job>` ends one."
        ) from None
    except (FailedJobError, UncompletedJobError) as error:
        raise JobError(f"a job of {GROUP}={launcher} did not finish. {error}") from error
    except FailedSubmissionError as error:
        raise JobError(f"{GROUP}={launcher} could not submit: {error}") from error
    except HydraException as error:
        raise ConfigError(f"{GROUP}={launcher} cannot be used: {error}") from error
    except RuntimeError as error:
        if "srun" not in str(error):
            raise
        raise ConfigError(
            f"{GROUP}={launcher} submits to SLURM, but there is no srun on the PATH here: run it where jobs are "
            f"submitted from, or try {GROUP}=local_1x2 on this machine."
        ) from error
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]


def become_rank() -> None:
    """Where this process is a task of a submitted job, say which rank that is in the variables that torch reads.

    They come from those of SLURM, or of submitit's local executor.
    """
    if "SUBMITIT_EXECUTOR" not in os.environ or "submitit" not in sys.modules:
        return
    from submitit.helpers import TorchDistributedEnvironment

    environment = TorchDistributedEnvironment()
    if environment.world_size == environment.local_world_size:
        environment.master_addr = "127.0.0.1"  # a node alone need not know its own name
    # Each rank sees all GPUs of its node and takes its own: peers then reach each other's memory directly.
    environment.export(set_cuda_visible_devices=False, overwrite=True)

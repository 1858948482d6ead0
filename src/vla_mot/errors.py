"""The errors that a user can cause, and the sentence that helps with a misspelt name.

Every message says what was expected, what came, and where to fix it. All of these are `ValueError`s, so a
caller who does not know vla_mot can still catch them; the commands print them without a traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from signal import Signals


class ConfigError(ValueError):
    """A configuration that does not fit: an unknown key or preset, experts that disagree, a bad number."""


class DatasetError(ValueError):
    """A dataset that is missing, of another format, or does not fit the embodiment."""


class CheckpointError(ValueError):
    """A checkpoint that is truncated, incomplete, has a weight too many, or one of another shape."""


class DataWorkerError(RuntimeError):
    """A process that prepares batches died. Nothing is lost: the run goes on from its newest checkpoint."""


class JobError(RuntimeError):
    """A job that was submitted to a cluster ended without a result; its own message says why."""


class RankLostError(RuntimeError):
    """Another of the processes that train together ended; its own message says why."""


class NonFiniteLossError(ValueError):
    """A loss or gradient became NaN or infinite; the message names the batch and the last good checkpoint."""


class TrainingStoppedError(RuntimeError):
    """A run that was asked to stop did, between two steps.

    asked: the signal. step: optimizer steps done. checkpoint: the folder that holds all of them.
    """

    def __init__(self, asked: Signals, step: int, checkpoint: Path) -> None:
        super().__init__(f"stopped by {asked.name} after step {step}, which is kept in {checkpoint}")
        self.asked, self.step, self.checkpoint = asked, step, checkpoint


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the closest of `known`, or an empty string when nothing is close."""
    match = get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for a name that is not among `known`: what came, the nearest one, and the choices."""
    choices = sorted(str(k) for k in known)
    return f"unknown {kind} {name!r}.{nearest(name, choices)} Known: {', '.join(choices) or 'none'}."

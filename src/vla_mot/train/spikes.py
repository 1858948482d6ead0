"""Losses that are not what they should be: far above their running mean, or no numbers at all.

Both are judged by the numbers of the global batch, which all ranks share, so that all decide alike.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from vla_mot.errors import CheckpointError, NonFiniteLossError

log = logging.getLogger(__name__)

_SETTLING = 20  # steps before the mean means something
_DECAY = 0.98


@dataclass(frozen=True)
class RunningLoss:
    """The running mean of a loss, as it stands after `count` steps.

    Young means forget quickly, `min(0.98, (1 + n) / (10 + n))`, since losses fall fastest at the start.
    """

    mean: float = 0.0
    count: int = 0

    def is_spike(self, loss: float, spike: float) -> bool:
        """Whether a loss is more than `spike` times the mean of the steps before. Never within the first 20 steps."""
        return self.count >= _SETTLING and loss > spike * self.mean

    def after(self, loss: float, spike: float) -> "RunningLoss":
        """The mean with one more loss, of which no more than `spike` times the mean counts.

        So one spike does not hide the next, and a loss that stays high becomes what is usual after some steps.
        Raises ValueError for a loss that is not finite: such a step is left out, or ends the run.
        """
        if not math.isfinite(loss):
            raise ValueError(f"a running mean takes finite losses only, got {loss}.")
        if self.count == 0:
            return RunningLoss(loss, 1)
        counted = min(loss, spike * self.mean) if self.is_spike(loss, spike) else loss
        decay = min(_DECAY, (1 + self.count) / (10 + self.count))
        return RunningLoss(decay * self.mean + (1 - decay) * counted, self.count + 1)

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps, for JSON: Python writes floats so that they read back as the same bits."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, float] | None) -> "RunningLoss":
        """Restore what `state` gave; a checkpoint without it begins anew. Raises CheckpointError when it is damaged."""
        if not state:
            return cls()
        try:
            restored = cls(float(state["mean"]), int(state["count"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"a running loss is kept as mean and count, the checkpoint holds {state!r}."
            ) from error
        if not math.isfinite(restored.mean) or restored.count < 0:
            raise CheckpointError(
                f"a running loss has a finite mean and a count, the checkpoint holds {state!r}."
            )
        return restored


def spike_message(step: int, loss: float, usual: RunningLoss, described: str) -> str:
    """What the log says of a spike. described: where the batch's samples come from (`Loader.describe`)."""
    return f"step {step}: the loss is {loss:.4g}, its running mean {usual.mean:.4g}. The batch holds {described}."


@dataclass(frozen=True)
class NotFinite:
    """What becomes of a step whose loss or gradient is not finite.

    policy: `stop` the run, or `skip` the step: weights, averages and optimizer stay as they are, the step is counted.
    most: steps that may be skipped in a run, over all its resumptions. lr: the run's, for the advice.
    tells: whether what is skipped is logged here: all ranks skip the same, one says so.
    """

    policy: Literal["stop", "skip"]
    most: int
    lr: float
    tells: bool = True

    def met(self, step: int, what: str, described: str, skipped: int, kept: Path | None) -> int:
        """Deal with one such step; returns how many were skipped, this one included.

        what: `loss is not finite`, for example. described: where the batch's samples come from (`Loader.describe`).
        skipped: how many before. kept: the last good checkpoint.
        Raises NonFiniteLossError when the step may not be skipped.
        """
        if self.policy == "skip" and skipped < self.most:
            if self.tells:
                log.warning(
                    "step %d is left out (%d of at most %d, train.safety.skip_steps): %s. The batch holds %s.",
                    step,
                    skipped + 1,
                    self.most,
                    what,
                    described,
                )
            return skipped + 1
        spent = f", and {skipped} such were left out before (train.safety.skip_steps={self.most})"
        raise self.error(step, what + (spent if self.policy == "skip" else ""), described, kept)

    def error(self, step: int, what: str, described: str, kept: Path | None) -> NonFiniteLossError:
        """The error that names the batch of `step`, and how to go on."""
        from_there = (
            f"go on from it in a new run: init_from={kept} output=…, with" if kept else "begin again with"
        )
        skip = "" if self.policy == "skip" else " train.safety.not_finite=skip leaves single steps out."
        return NonFiniteLossError(
            f"step {step}: {what}. The batch holds {described}. The last good checkpoint is {kept}. "
            f"Look at these frames, or {from_there} a train.lr below {self.lr:g}.{skip}"
        )

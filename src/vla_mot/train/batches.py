"""The rule of batches: how the global batch of an experiment is made by ranks, in micro batches and passes.

    batch_size = ranks × micro_batch × accumulate

The batch belongs to the experiment, the other three to the machines that compute it: no choice of theirs changes it
silently.
"""

from dataclasses import dataclass
from typing import Self

from vla_mot.errors import ConfigError


@dataclass(frozen=True)
class Batches:
    """How one global batch is passed: by `ranks`, each `accumulate` times `micro_batch` samples."""

    ranks: int
    micro_batch: int
    accumulate: int

    @classmethod
    def of(
        cls, batch_size: int, ranks: int, micro_batch: int | None = None, accumulate: int | None = None
    ) -> Self:
        """Divide a global batch.

        micro_batch: None: what `accumulate` passes leave for each. accumulate: None: as many passes as the batch
        needs. Raises ConfigError where something does not divide, or where the product is another global batch.
        """
        if micro_batch is not None and accumulate is not None:
            _require_same(batch_size, ranks, micro_batch, accumulate)
            return cls(ranks, micro_batch, accumulate)
        if batch_size % ranks:
            raise ConfigError(
                f"a global batch of {batch_size} does not divide among {_ranks(ranks)}; start it with a number of "
                f"ranks that does, or choose another batch on purpose: {_purpose(_near(batch_size, ranks))}."
            )
        share = batch_size // ranks
        if micro_batch is None:
            passes = 1 if accumulate is None else accumulate
            return cls(ranks, _divided(share, passes, "accumulate", batch_size, ranks), passes)
        return cls(ranks, micro_batch, _divided(share, micro_batch, "micro_batch", batch_size, ranks))

    @property
    def batch_size(self) -> int:
        """Samples of one optimizer step, over all ranks and passes."""
        return self.ranks * self.share

    @property
    def share(self) -> int:
        """Samples of one optimizer step on one rank."""
        return self.micro_batch * self.accumulate

    def __str__(self) -> str:
        samples = f"{self.micro_batch} sample{'s' if self.micro_batch > 1 else ''}"
        passes = f"{self.accumulate} pass{'es' if self.accumulate > 1 else ''}"
        return f"{_ranks(self.ranks)} × {samples} × {passes}"


def _require_same(batch_size: int, ranks: int, micro_batch: int, accumulate: int) -> None:
    """Raise ConfigError unless these make the experiment's batch."""
    made = ranks * micro_batch * accumulate
    if made == batch_size:
        return
    passes, rest = divmod(batch_size, ranks * micro_batch)
    fitting = (
        f"keep the experiment's with train.parallel.accumulate={passes}"
        if rest == 0
        else f"no number of passes of {ranks * micro_batch} samples makes {batch_size}: change the ranks or "
        "train.parallel.micro_batch to keep it"
    )
    raise ConfigError(
        f"a global batch that differs from the experiment's: {_ranks(ranks)} × train.parallel.micro_batch="
        f"{micro_batch} × train.parallel.accumulate={accumulate} = {made} samples per step, but train.batch_size is "
        f"{batch_size}. Either {fitting}; or, to train with another batch on purpose: {_purpose([made])}."
    )


def _divided(share: int, by: int, key: str, batch_size: int, ranks: int) -> int:
    """share / by. Raises ConfigError naming the divisors next to `by` when there is a rest."""
    if share % by == 0:
        return share // by
    fitting = [value for value in _divisors(share) if value < by][-1:]
    fitting += [value for value in _divisors(share) if value > by][:1]
    raise ConfigError(
        f"train.parallel.{key}={by} does not divide the {share} samples that each of {_ranks(ranks)} has of a global "
        f"batch of {batch_size}; fitting: {' or '.join(f'train.parallel.{key}={value}' for value in fitting)}. "
        f"Or choose another batch on purpose: {_purpose(_near(batch_size, ranks * by))}."
    )


def _divisors(number: int) -> list[int]:
    return [value for value in range(1, number + 1) if number % value == 0]


def _near(batch_size: int, unit: int) -> list[int]:
    """The multiples of `unit` around a batch size."""
    below = batch_size // unit * unit
    return [size for size in (below, below + unit) if size > 0]


def _purpose(sizes: list[int]) -> str:
    return " or ".join(f"train.batch_size={size}" for size in sizes)


def _ranks(ranks: int) -> str:
    return "1 rank" if ranks == 1 else f"{ranks} ranks"

"""Telling the loss of another rank from everything else that goes wrong.

When a rank dies, the others meet it as a closed connection in the midst of an exchange, in the words of whatever they
talk through. That is no defect of theirs: the reason is what the dead rank said.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from vla_mot.errors import RankLostError

_OF_EXCHANGES = re.compile(r"gloo|nccl|connection (closed|reset) by peer", re.IGNORECASE)
_LONGEST = 300  # characters of a library's message


def is_loss(error: BaseException) -> bool:
    """Whether an error says that an exchange with other ranks failed.

    NCCL and the store raise torch's `DistError`; gloo a plain RuntimeError that names its source file.
    """
    if isinstance(error, dist.DistError):
        return True
    return type(error) is RuntimeError and _OF_EXCHANGES.search(str(error)) is not None


@contextmanager
def losses_explained(rank: int) -> Iterator[None]:
    """Raise RankLostError where an exchange with the other ranks failed."""
    try:
        yield
    except RuntimeError as error:
        if not is_loss(error):
            raise
        reason = " ".join(str(error).split())[:_LONGEST]
        raise RankLostError(
            f"another rank ended, or cannot be reached; rank {rank} cannot go on without it. Look at what the others "
            f"said: the first of them to end knows why. The newest checkpoint is whole. ({reason})"
        ) from error

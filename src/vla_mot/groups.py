"""Process groups that outlive whatever talked through them.

The last reference to a gloo group ends it. Whoever drops that one waits, holding the interpreter, for the group's
threads, and one of these may just then wait for the interpreter to let go of a tensor of the last exchange: nobody goes
on (torch 2.11). `DistributedDataParallel` holds a reference, too, and is often dropped right after the last barrier.
"""

import torch.distributed as dist

_kept: "set[dist.ProcessGroup]" = set()


def keep_to_the_end(*groups: "dist.ProcessGroup") -> None:
    """Keep groups until the process ends, when nothing is exchanged any more; none given: torch's default, if any."""
    _kept.update(groups)
    if not groups and dist.is_available() and (default := dist.group.WORLD) is not None:
        _kept.add(default)

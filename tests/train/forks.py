"""Children of a process that has imported everything and computed nothing: imports take longer than their lives do."""

import os
import socket
import sys
import traceback
from collections.abc import Callable


def forked(act: Callable[[], None]) -> int:
    """The process id of a child that does `act` and ends with 0, or with 1 and a traceback."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        act()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def two_ranks(live: Callable[[int], None], port: int) -> list[int]:
    """The process ids of two children that do `live(rank)`, told like torchrun's who they are and where they meet."""

    def told(rank: int) -> None:
        where = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        who = where | {"RANK": rank, "LOCAL_RANK": rank}
        os.environ.update({name: str(value) for name, value in who.items()})
        live(rank)

    return [forked(lambda rank=rank: told(rank)) for rank in range(2)]

"""Two ranks that meet, exchange, part and let go of everything at once, over and over.

    python -m tests.train.parting LIVES

Prints how many lives every rank lived. A rank whose life does not end tells where it hangs and ends all.
"""

import faulthandler
import os
import socket
import sys
from contextlib import suppress

import torch
import torch.distributed as dist
from tests.train.forks import two_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vla_mot.groups import keep_to_the_end
from vla_mot.train.world import join

PATIENCE = 30.0  # seconds; a life takes some tenths of one


def exchange() -> nn.Module:
    """The last things that training does. What it returns holds the group that it talked through."""
    module = DistributedDataParallel(nn.Linear(4, 4))
    for _ in range(2):
        module(torch.ones(2, 4)).sum().backward()
        number = torch.ones(2)
        dist.all_reduce(number)
        number.tolist()
    dist.barrier()
    dist.barrier()
    return module


def training() -> None:
    """As `vla-mot pretrain` does it."""
    with join("cpu", PATIENCE):
        module = exchange()
    del module


def theirs() -> None:
    """As a trainer does it that knows of nothing, around a policy that keeps the group it is trained through."""
    dist.init_process_group("gloo")
    keep_to_the_end()
    module = exchange()
    dist.destroy_process_group()
    del module


def lives(ports: list[int]) -> None:
    """One life after the other; they meet at the ports."""
    for number, port in enumerate(ports):
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        os.environ["MASTER_PORT"] = str(port)
        (training, theirs)[number % 2]()


def free_ports(count: int) -> list[int]:
    """Ports below those that the system gives to connections: nobody takes one before its life comes."""
    found: list[int] = []
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            break
    return found


def main(count: int) -> None:
    torch.set_num_threads(1)
    ports = free_ports(count)
    for child in two_ranks(lambda rank: lives(ports), ports[0]):
        assert os.waitpid(child, 0)[1] == 0, "a life did not end"
    print(len(ports))


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""Opens a checkpoint in a process of its own and prints, in bytes: its size, and the peak of anonymous and of mapped
memory above the start. Run by `test_memory.py`."""

import json
import sys
import threading
import time
from pathlib import Path

import torch

from vla_mot.hub.checkpoint import open_checkpoint


def resident() -> dict[str, int]:
    """RssAnon and RssFile of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        line.split(":")[0]: int(line.split()[1]) * 1024
        for line in lines
        if line.startswith(("RssAnon", "RssFile"))
    }


def main(folder: str, dtype: str) -> None:
    checkpoint = open_checkpoint(folder)
    start, peak, done = resident(), resident(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            for name, value in resident().items():
                peak[name] = max(peak[name], value)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = checkpoint.load(dtype=getattr(torch, dtype) if dtype != "stored" else None)
    done.set()
    watcher.join()
    held = sum(x.numel() * x.element_size() for x in model.state_dict().values())
    grown = {name: peak[name] - start[name] for name in peak}
    print(json.dumps({"file": checkpoint.weights.bytes, "model": held, **grown}))


if __name__ == "__main__":
    main(*sys.argv[1:])

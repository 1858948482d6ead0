"""The machine that a number was measured on, in words."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = ("vla-mot", "lerobot", "transformers", "numpy")


def describe_machine() -> dict[str, str]:
    """Processor, usable cores, memory, accelerator, and the versions that matter. No name and no address of it."""
    facts = {
        "processor": _processor_name(),
        "cores": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}",
        "torch threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "torch": torch.__version__,
    }
    if memory := _memory_gib():
        facts["memory"] = f"{memory:.0f} GiB"
    if torch.cuda.is_available():
        facts["accelerator"] = torch.cuda.get_device_name()
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def _processor_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return 0.0

"""What the benchmarks share: their arguments, how they describe themselves, their tables, and batches of any model."""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vla_mot.batch import Batch, Observation
from vla_mot.errors import ConfigError, unknown_name
from vla_mot.model.model import VlaMotModel
from vla_mot.options import fit

_HERE = Path(__file__).resolve().parent


def parse_arguments(words: Sequence[str], **defaults: bool | float | str) -> dict:
    """`key=value` words over defaults, of the defaults' types. Raises ConfigError for one that is unknown or unfit."""
    options = dict(defaults)
    for word in words:
        key, _, value = word.partition("=")
        if key not in defaults:
            raise ConfigError(unknown_name("argument", key, defaults))
        options[key] = _read(key, value, type(defaults[key]))
    return options


def _read(key: str, value: str, kind: type) -> bool | float | str:
    spoken = {"true": True, "false": False}
    if kind is bool:
        return fit(bool, key, spoken.get(value, value))
    try:
        return kind(value)
    except ValueError as error:
        raise ConfigError(
            f"{key} must be {'a number' if kind is float else 'a whole number'}, got {value!r}."
        ) from error


def some_of(key: str, words: str, known: Iterable[str]) -> list[str]:
    """Words with commas between them. Raises ConfigError for one that is not known."""
    asked, names = words.split(","), list(known)
    for word in asked:
        if word not in names:
            raise ConfigError(unknown_name(key, word, names))
    return asked


def describe_machine(device: str) -> str:
    """One line: commit, device, cores, torch."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=_HERE, capture_output=True, text=True, check=False
    ).stdout.strip()
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or "cpu"
    return (
        f"commit {commit or 'unknown'}, {device} ({name}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads), torch {torch.__version__}"
    )


def spread(values: Sequence[float], form: str) -> str:
    """Median, and from the least to the most where there are several."""
    middle = format(statistics.median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}} … {max(values):{form}})"


def head(*titles: str) -> None:
    """Begin a table in Markdown."""
    row(*titles)
    row(*("---" for _ in titles))


def row(*cells: object) -> None:
    """Print a row of it at once, so that a long run shows what it has."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def synchronize(device: str) -> None:
    """Wait for what the device was told, so that a clock can be read."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def said_by(module: str, setup: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Run a module in a process of its own: it reads JSON from its command line, and prints lines of JSON.

    name: of what is tried. Raises RuntimeError when it dies.
    """
    paths = [str(_HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    environment.setdefault(
        "PYTORCH_ALLOC_CONF", "expandable_segments:True"
    )  # sizes change within the process
    command = [sys.executable, "-m", module, json.dumps(dict(setup))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        raise RuntimeError(f"the trial of {name!r} died; what it said stands above.")


def peak(device: str, before: int) -> int:
    """Bytes at the peak: on a GPU all of them, on a CPU those above `before`."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    # Not of getrusage, which begins at what the process held that started this one.
    return resident("VmHWM") - before


def resident(kind: str = "VmRSS") -> int:
    """Bytes of memory that this process holds; `VmHWM`: held at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [told] = [line.split() for line in lines if line.startswith(f"{kind}:")]
    return 1024 * int(told[1])


TEXT = "pick the red block from the moving belt and hold it up high"
"""Longer than any preset's instruction in bytes: then every text token is real."""


def random_batch(
    model: VlaMotModel,
    batch: int,
    device: str,
    *,
    text: str = TEXT,
    views: int | None = None,
    action_dims: int | None = None,
) -> Batch:
    """Random samples in the shapes of a model, with nothing masked but what is asked for.

    views, action_dims: how many are real; None: all.
    """
    config, generator = model.config, torch.Generator().manual_seed(0)
    views, action_dims = views or config.num_views, action_dims or config.max_action_dim
    token_ids, token_mask = model.understanding.tokenize([text] * batch)
    action_mask = torch.zeros(batch, config.chunk_size, config.max_action_dim, dtype=torch.bool)
    action_mask[:, :, :action_dims] = True
    shape = (batch, views, 3, 3, *config.view_size)
    pictures = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    present = torch.ones(batch, views, dtype=torch.bool)
    observation = Observation(
        images=pictures[:, :, :2],
        view_mask=present,
        state=torch.randn(batch, config.max_state_dim, generator=generator),
        token_ids=token_ids,
        token_mask=token_mask,
    )
    made = Batch(
        observation=observation,
        future=pictures[:, :, 2],
        future_mask=present,
        actions=torch.randn(action_mask.shape, generator=generator) * action_mask,
        action_mask=action_mask,
        index=torch.arange(batch),
    )
    return made.to(device)

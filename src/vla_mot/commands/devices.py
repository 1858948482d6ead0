"""Where a command computes: one check for all of them, made before anything is opened or written."""

import torch

from vla_mot.errors import ConfigError, nearest

_KINDS = ("cpu", "cuda", "mps", "xpu")


def require_device(key: str, name: str) -> None:
    """Raise ConfigError unless this machine has the device `name` (`cpu`, `cuda`, `cuda:1`, …). key: who asks."""
    found = {"cpu": 1}
    if torch.accelerator.is_available():
        found[torch.accelerator.current_accelerator().type] = torch.accelerator.device_count()  # type: ignore[union-attr]
    kind, colon, number = name.partition(":")
    if (number.isdecimal() or not colon) and int(number or 0) < found.get(kind, 0):
        return
    hint = "" if kind in _KINDS else nearest(kind, _KINDS)
    here = ", ".join(
        kind if count == 1 else f"{kind}:0 … {kind}:{count - 1}" for kind, count in found.items()
    )
    raise ConfigError(f"{key}={name}: torch finds no such device here.{hint} There is: {here}.")

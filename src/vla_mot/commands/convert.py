"""`vla-mot convert`: a checkpoint into another layout or dtype."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from vla_mot.commands import folders
from vla_mot.commands.console import console, show_library_log
from vla_mot.commands.opening import Opening
from vla_mot.commands.settings import section
from vla_mot.hub.released import save_released
from vla_mot.infer.policy import Policy


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(Opening):
    """See conf/convert.yaml."""

    output: Path
    layout: Literal["native", "released"] = "native"
    dtype: Literal["float32", "bfloat16"] | None = None


def run(config: dict[str, Any], overrides: list[str]) -> None:
    """The command. What is written appears under `output` when it is whole."""
    show_library_log()
    wanted = section(ConvertConfig, "", config)
    folders.require_unused(wanted.output)
    found = wanted.open()
    dtype = getattr(torch, wanted.dtype) if wanted.dtype else None
    model = found.load(dtype=dtype)
    spec = replace(found.spec, dtype=wanted.dtype) if wanted.dtype else found.spec
    with folders.whole(wanted.output) as folder:
        if wanted.layout == "released":
            save_released(folder, spec, model.state_dict())
        else:
            Policy(model, spec).save_pretrained(folder)
    console.print(f"{found.folder} ({found.layout}) → {wanted.output} ({wanted.layout})")

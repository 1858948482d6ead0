"""One variant in a process of its own, for its peak memory: it reads a `Setup` as JSON and prints a line of JSON."""

import json
import sys
from dataclasses import asdict, dataclass

import torch
from baseline.sizes import build
from common import peak, resident, said_by

from acting.equal import answered
from acting.scene import Setting, scene
from acting.variants import Variant

_CALLS = 3
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Setup:
    """What is weighed. dtype: `fp32` or `bf16`, of the weights. foresight: another tokenizer than the size's."""

    variant: str
    size: str
    device: str
    dtype: str
    views: int
    steps: int
    batch: int
    foresight: str = ""


def weighed(setup: Setup) -> int:
    """Bytes at the peak of three calls in a new process, weights included. Raises RuntimeError when it dies."""
    [told] = said_by("acting.trial", asdict(setup), setup.variant)
    return told["peak"]


def main() -> None:
    """Measure, and say so."""
    setup = Setup(**json.loads(sys.argv[1]))
    before = resident()
    model = build(setup.size, setup.device, setup.foresight).cast(DTYPES[setup.dtype])
    policy, request = scene(model, Setting(setup.views, setup.steps, batch=setup.batch))
    if setup.device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    policy = Variant.of(setup.variant).around(policy)
    for _ in range(_CALLS):
        answered(policy, request)
    print(json.dumps({"peak": peak(setup.device, before)}), flush=True)


if __name__ == "__main__":
    main()

"""What K noise draws that share one prefix cost in training, relative to one draw.

Prints commit, machine, device, dtype and shapes with the numbers. Medians over repeats; the variants take turns, so
that a busy machine slows them alike.

    python benchmarks/action_draws.py [device=cpu] [repeats=7] [batch=32]
"""

import statistics
import sys
import time

import torch
from common import describe_machine, parse_arguments, tiny_training_batch

from vla_mot.flow.matching import NoiseLevelConfig
from vla_mot.model.objective import draw_noise, objective

DRAWS = (1, 2, 4, 8, 16)


def main() -> None:
    """Time one step per number of draws, in turns, and print the table."""
    options = parse_arguments(sys.argv[1:], device="cpu", repeats=7, batch=32)
    model, batch = tiny_training_batch(options["batch"], options["device"])

    def step(draws: int) -> float:
        noise, level = draw_noise(batch, draws, 0, 0, NoiseLevelConfig())
        _wait(options["device"])
        start = time.perf_counter()
        objective(model.losses(batch, noise, level), 0.1).total.backward()
        _wait(options["device"])
        model.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    for draws in DRAWS:
        step(draws)
    times: dict[int, list[float]] = {draws: [] for draws in DRAWS}
    for _ in range(options["repeats"]):
        for draws in DRAWS:
            times[draws].append(step(draws))
    median = {draws: statistics.median(values) for draws, values in times.items()}
    print(describe_machine(options["device"]))
    print(
        f"forward and backward, tiny model, batch {batch.batch_size}, float32, {options['repeats']} repeats"
    )
    print(f"{'K':>4} {'ms / step':>10} {'cost / K = 1':>13} {'cost per draw':>14}")
    for draws in DRAWS:
        ratio = median[draws] / median[1]
        print(f"{draws:>4} {1e3 * median[draws]:>10.1f} {ratio:>13.2f} {ratio / draws:>14.2f}")


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()

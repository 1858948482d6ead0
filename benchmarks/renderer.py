"""How fast the conveyor robot is drawn: pictures per second of its software renderer, and what they cost a step.

Prints commit, machine and shapes with the numbers. Medians over repeats; the sizes take turns, so that a busy machine
slows them alike. One thread draws, whatever the machine has.

    python benchmarks/renderer.py [repeats=7] [steps=40]
"""

import statistics
import sys
import time

from common import describe_machine, parse_arguments

from vla_mot.envs.conveyor import ConveyorEnv

SIZES = (64, 128, 224)  # pixels, side of each camera's picture
CAMERAS = 2


def main() -> None:
    """Time the same steps without cameras and with them at every size, in turns, and print the table."""
    options = parse_arguments(sys.argv[1:], repeats=7, steps=40)
    robots = {0: ConveyorEnv(obs_type="agent_pos", max_steps=options["steps"] + 1)}
    robots |= {size: ConveyorEnv(image_size=size, max_steps=options["steps"] + 1) for size in SIZES}
    for robot in robots.values():
        seconds_per_step(robot, 2)
    times: dict[int, list[float]] = {size: [] for size in robots}
    for _ in range(options["repeats"]):
        for size, robot in robots.items():
            times[size].append(seconds_per_step(robot, options["steps"]))
    median = {size: statistics.median(values) for size, values in times.items()}
    print(describe_machine("cpu"))
    print(f"{CAMERAS} cameras, {options['steps']} steps, {options['repeats']} repeats")
    print(f"{'size':>9} {'ms / step':>10} {'pictures / s':>13} {'step / step without cameras':>28}")
    for size, step in median.items():
        drawing = step - median[0]
        rate = f"{CAMERAS / drawing:.0f}" if size else ""
        print(
            f"{f'{size} px' if size else 'none':>9} {1e3 * step:>10.2f} {rate:>13} {step / median[0]:>28.1f}"
        )


def seconds_per_step(robot: ConveyorEnv, steps: int) -> float:
    """Seconds that one control step takes, over the first steps of an episode in which the gripper stands still."""
    stay = robot.reset(seed=0)[0]["agent_pos"][:3]
    start = time.perf_counter()
    for _ in range(steps):
        robot.step(stay)
    return (time.perf_counter() - start) / steps


if __name__ == "__main__":
    main()

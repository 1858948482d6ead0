"""The three generated datasets of `experiment=pretrain_tiny` at miniature size; see the fixture `three_datasets`."""

import os
from pathlib import Path

from vla_mot.commands.main import main

EPISODES = 3
SIZE = 48  # pixels
RECORDINGS = {"conveyor": "planar", "conveyor_fingers": "fingers", "conveyor_video": "hand"}
"""Embodiment → the robot that gives it."""


def record_three(folder: Path) -> None:
    """Record them by the command; the folder appears only when all are complete."""
    work = folder.with_name(f".{folder.name}.{os.getpid()}")
    for seed, (embodiment, robot) in enumerate(RECORDINGS.items()):
        words = (
            f"embodiment={embodiment}",
            f"env.robot={robot}",
            f"env.image_size={SIZE}",
            f"seed={10 * seed}",
        )
        assert main(["data", "record", *words, f"output={work / embodiment}", f"episodes={EPISODES}"]) == 0
    work.rename(folder)

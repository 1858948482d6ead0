"""The embedded demo robot: importing this package registers `vla_mot/Conveyor-v0` with gymnasium.

Needs the extra `vla-mot[conveyor]` (gymnasium, pymunk, pygame) and nothing else of this library.
"""

from gymnasium.envs.registration import register, registry

CONVEYOR_ID = "vla_mot/Conveyor-v0"

# No `max_episode_steps`: the time limit is the environment's own verdict, `time_out`.
if CONVEYOR_ID not in registry:
    register(id=CONVEYOR_ID, entry_point="vla_mot.envs.conveyor.env:ConveyorEnv")

__all__ = ["CONVEYOR_ID"]

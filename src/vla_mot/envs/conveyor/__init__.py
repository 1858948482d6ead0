"""A gripper that picks the named block from a moving belt: motion matters, provably.

scene       the geometry in metres, and what is random about an episode
world       pymunk physics: belt friction, force-limited gripper, contact-only grasps
robots      the gripper as several robots: their actions, states, cameras and looks
render      antialiased software pictures (pygame surfaces, no display)
env         the gymnasium environment around the two
expert      a scripted expert that plans open-loop chunks from a believed belt velocity
demonstrate noisy demonstrations with clean labels, for recording a dataset
"""

from vla_mot.envs.conveyor.demonstrate import (
    DEMONSTRATION_STEPS,
    DemonstrationNoise,
    DemonstrationStep,
    demonstrate,
)
from vla_mot.envs.conveyor.env import ConveyorEnv
from vla_mot.envs.conveyor.expert import ChunkExpert, plan_chunk
from vla_mot.envs.conveyor.robots import ROBOTS, ConveyorRobot
from vla_mot.envs.conveyor.scene import COLORS, Scene, instruction, sample_scene
from vla_mot.envs.conveyor.world import WorldState

__all__ = [
    "COLORS",
    "DEMONSTRATION_STEPS",
    "ROBOTS",
    "ChunkExpert",
    "ConveyorEnv",
    "ConveyorRobot",
    "DemonstrationNoise",
    "DemonstrationStep",
    "Scene",
    "WorldState",
    "demonstrate",
    "instruction",
    "plan_chunk",
    "sample_scene",
]

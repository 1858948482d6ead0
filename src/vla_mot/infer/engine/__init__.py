"""Sampling in static stages: the same model and weights, with everything that does not change made once.

`Policy.compile` puts an `Engine` in front of a policy's model; see `engine`.
"""

from vla_mot.infer.engine.config import EngineConfig
from vla_mot.infer.engine.engine import Engine

__all__ = ["Engine", "EngineConfig"]

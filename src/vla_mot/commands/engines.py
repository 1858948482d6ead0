"""The group `engine`: what samples a policy that a command opens."""

from collections.abc import Mapping
from typing import Any

from vla_mot.commands.settings import section
from vla_mot.infer.engine import EngineConfig
from vla_mot.infer.policy import Policy

EAGER = "eager"


def with_engine(policy: Policy, engine: Mapping[str, Any]) -> Policy:
    """The policy behind the engine of `conf/engine/`. Raises ConfigError for an option that does not fit."""
    if engine == {"kind": EAGER}:
        return policy
    return policy.with_engine(section(EngineConfig, "engine", engine))


def remembers(engine: Mapping[str, Any]) -> bool:
    """Whether its answers depend on what the same session asked before (fast and slow). Raises as `with_engine`."""
    if engine == {"kind": EAGER}:
        return False
    config = section(EngineConfig, "engine", engine)
    return config.understanding_every > 1 or config.understanding_ahead


def described(engine: Mapping[str, Any]) -> str:
    """Kind, and what differs from its defaults: `static, understanding_every=2`."""
    if engine == {"kind": EAGER}:
        return EAGER
    plain = EngineConfig()
    changed = [
        f"{key}={value}" for key, value in engine.items() if key != "kind" and value != getattr(plain, key)
    ]
    return ", ".join([str(engine["kind"]), *changed])

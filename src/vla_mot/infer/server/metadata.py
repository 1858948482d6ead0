"""What a client is told when it connects: what the server drives, what it expects, and its limits."""

from collections.abc import Mapping
from typing import Any

from vla_mot.infer.policy import Policy
from vla_mot.infer.server.config import ServerConfig
from vla_mot.infer.server.observation import MAX_SIDE, STATE
from vla_mot.infer.server.wire import MAX_ITEMS, MAX_TEXT
from vla_mot.robots.embodiment import Field
from vla_mot.version import __version__

PROTOCOL = "openpi websocket, msgpack with numpy arrays"


def metadata(policies: Mapping[str, Policy], config: ServerConfig) -> dict[str, Any]:
    """Plain values alone: maps with text for keys, lists, texts and numbers."""
    return {
        "server": f"vla_mot {__version__}",
        "protocol": PROTOCOL,
        "robots": {name: _robot(policy) for name, policy in policies.items()},
        "seed": config.seed,
        "missing_history": config.missing_history,
        "history_tolerance": config.history_tolerance,
        "rename": dict(config.rename),
        "limits": {
            "message_bytes": config.message_bytes,
            "items": MAX_ITEMS,
            "text": MAX_TEXT,
            "side": MAX_SIDE,
            "max_waiting": config.max_waiting,
            "deadline_ms": config.deadline_ms,
        },
    }


def _robot(policy: Policy) -> dict[str, Any]:
    body, spec = policy.robot.embodiment, policy.spec
    return {
        "embodiment": body.name,
        "action_mode": policy.robot.action_mode,
        "fps": body.fps,
        "cameras": [key for _, key in body.present_cameras],
        "picture": "uint8, (h, w, 3) or (3, h, w); with history (2, h, w, 3), frames t - m and t",
        "state": [_field(part) for part in body.state],
        "state_key": STATE,
        "state_dim": body.state_dim,
        "action": [_field(part) for part in body.action],
        "action_dim": body.action_dim,
        "actions_are": "absolute, in physical units",
        "chunk_size": spec.model.chunk_size,
        "n_action_steps": spec.sampler.n_action_steps,
        "history_steps": policy.history_steps,
    }


def _field(part: Field) -> dict[str, Any]:
    return {"key": part.key, "names": list(part.names), "units": list(part.units)}

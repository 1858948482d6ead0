"""The processor files that LeRobot's commands load from a checkpoint folder, as plain data.

A vla_mot policy normalizes by the statistics inside its own checkpoint, so these steps rename, batch and move
tensors and nothing more. The normalizers are there, as identities, because `lerobot-train --policy.path` overrides
steps of those names and refuses a pipeline without them.
"""

from typing import Any


def _step(name: str, **config: Any) -> dict[str, Any]:
    return {"registry_name": name, "config": config}


_IDENTITY = {
    "eps": 1e-8,
    "features": {},
    "norm_map": {"VISUAL": "IDENTITY", "STATE": "IDENTITY", "ACTION": "IDENTITY"},
}
_CPU = {"device": "cpu", "float_dtype": None}

PROCESSOR_FILES: dict[str, dict[str, Any]] = {
    "policy_preprocessor.json": {
        "name": "policy_preprocessor",
        "steps": [
            _step("rename_observations_processor", rename_map={}),
            _step("to_batch_processor"),
            _step("device_processor", **_CPU),
            _step("normalizer_processor", **_IDENTITY),
        ],
    },
    "policy_postprocessor.json": {
        "name": "policy_postprocessor",
        "steps": [_step("unnormalizer_processor", **_IDENTITY), _step("device_processor", **_CPU)],
    },
}

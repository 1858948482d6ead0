"""The released policies, under the names by which LeRobot looks for them.

`VlaMotPolicy` opens and runs them; what is different about them stands in `configuration_released`.
"""

from typing import Any

from vla_mot.errors import ConfigError
from vla_mot.hub.spec import PolicySpec
from vla_mot.policy.configuration_released import InternA1Config, QwenA1Config, ReleasedConfig
from vla_mot.policy.modeling_vla_mot import VlaMotPolicy


class ReleasedPolicy(VlaMotPolicy):
    """A released policy that acts.

    Once opened it is a vla_mot policy like any other: its `config` is a `VlaMotConfig`, and `save_pretrained` writes
    our own layout (type `vla_mot`), which keeps the robots, the processors, the hashes and what the authors' files
    said, and which LeRobot trains. `vla-mot convert layout=released` writes the authors' layout.

    Raises ConfigError when it is made from a configuration alone.
    """

    config_class: Any = ReleasedConfig
    name = "released"

    def __init__(self, config: Any, *, spec: PolicySpec | None = None, **options: Any) -> None:
        if spec is None:
            raise ConfigError(
                f"a {self.name} policy is opened, not made: name its checkpoint with --policy.path."
            )
        super().__init__(config, spec=spec, **options)


class QwenA1Policy(ReleasedPolicy):
    """The 3B policy, on Qwen3-VL."""

    config_class = QwenA1Config
    name = "qwena1"


class InternA1Policy(ReleasedPolicy):
    """The 2B policy, on InternVL3."""

    config_class = InternA1Config
    name = "interna1"

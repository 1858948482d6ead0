"""The LeRobot face of `vla_mot.Policy`. Importing it registers three policy types with LeRobot: `vla_mot`, and
`qwena1` and `interna1`, the released ones.

LeRobot's commands import it through the distribution `lerobot_policy_vla_mot`; in Python, import it before
`PreTrainedConfig.from_pretrained`, which looks for no plugins by itself.
"""

from vla_mot.policy.configuration_released import InternA1Config, QwenA1Config
from vla_mot.policy.configuration_vla_mot import VlaMotConfig
from vla_mot.policy.modeling_released import InternA1Policy, QwenA1Policy
from vla_mot.policy.modeling_vla_mot import VlaMotPolicy
from vla_mot.policy.processor_vla_mot import make_vla_mot_pre_post_processors

__all__ = [
    "InternA1Config",
    "InternA1Policy",
    "QwenA1Config",
    "QwenA1Policy",
    "VlaMotConfig",
    "VlaMotPolicy",
    "make_vla_mot_pre_post_processors",
]

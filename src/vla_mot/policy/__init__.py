"""The LeRobot face of `vla_mot.Policy`. Importing it registers the policy type `vla_mot` with LeRobot.

LeRobot's commands import it through the distribution `lerobot_policy_vla_mot`; in Python, import it before
`PreTrainedConfig.from_pretrained`, which looks for no plugins by itself.
"""

from vla_mot.policy.configuration_vla_mot import VlaMotConfig
from vla_mot.policy.modeling_vla_mot import VlaMotPolicy
from vla_mot.policy.processor_vla_mot import make_vla_mot_pre_post_processors

__all__ = ["VlaMotConfig", "VlaMotPolicy", "make_vla_mot_pre_post_processors"]

"""LeRobot's pre- and post-processor around a released policy: the same as around any of ours."""

from vla_mot.policy.processor_vla_mot import (
    make_vla_mot_pre_post_processors as make_interna1_pre_post_processors,
)
from vla_mot.policy.processor_vla_mot import (
    make_vla_mot_pre_post_processors as make_qwena1_pre_post_processors,
)

__all__ = ["make_interna1_pre_post_processors", "make_qwena1_pre_post_processors"]

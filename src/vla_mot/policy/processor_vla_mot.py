"""LeRobot's pre- and post-processor around the policy: rename, batch, move. Everything else is the policy's own.

States and actions stay in physical units on both sides: the policy normalizes by the statistics of its checkpoint
and tokenizes the instruction itself. The same two pipelines lie as files in every checkpoint
(`vla_mot.hub.lerobot_processors`), where LeRobot's commands look for them.
"""

from typing import Any

from lerobot.configs import PreTrainedConfig
from lerobot.processor import (
    PolicyAction,
    PolicyProcessorPipeline,
    batch_to_transition,
    policy_action_to_transition,
    transition_to_batch,
    transition_to_policy_action,
)

from vla_mot.hub.lerobot_processors import PROCESSOR_FILES


def make_vla_mot_pre_post_processors(
    config: PreTrainedConfig, dataset_stats: dict[str, dict[str, Any]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Build both pipelines. dataset_stats: LeRobot passes them; the policy has taken its own from them already."""
    before = PolicyProcessorPipeline.from_config(
        PROCESSOR_FILES["policy_preprocessor.json"],
        overrides={"device_processor": {"device": config.device}},
        to_transition=batch_to_transition,
        to_output=transition_to_batch,
    )
    after = PolicyProcessorPipeline.from_config(
        PROCESSOR_FILES["policy_postprocessor.json"],
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    return before, after

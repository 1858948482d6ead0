"""LeRobot's real-time chunking in the policy's terms: its configuration, its left-over actions, its irregular calls.

LeRobot hands a policy back what its own `predict_action_chunk` returned. Ours returns absolute actions in physical
units, and LeRobot's processors around it change nothing, so that is what the left-over is, in delta mode too.

Legend: `B` batch, `R` steps left over, `D` real action dims.
"""

import logging

from lerobot.policies.rtc import RTCConfig
from torch import Tensor

from vla_mot.errors import ConfigError
from vla_mot.infer.rtc import RtcConfig
from vla_mot.options import fit
from vla_mot.policy.configuration_vla_mot import VlaMotConfig

log = logging.getLogger(__name__)


def rtc_options(config: VlaMotConfig) -> RtcConfig | None:
    """What `config.rtc_config` asks for, for our own engine; None where it is absent or not enabled.

    Raises ConfigError for a value that does not fit.
    """
    theirs: RTCConfig | None = config.rtc_config
    if theirs is None or not theirs.enabled:
        return None
    if theirs.debug:
        log.warning("rtc_config.debug has no effect: the denoising of this policy is not recorded")
    return RtcConfig(
        mode=fit(str, "--policy.rtc_mode", config.rtc_mode),
        max_guidance=theirs.max_guidance_weight,
        schedule=theirs.prefix_attention_schedule.value.lower(),
        overlap=theirs.execution_horizon,
        jacobian=fit(str, "--policy.rtc_jacobian", config.rtc_jacobian),
    )


def real_left_over(left_over: Tensor | None, robots: int, width: int) -> Tensor | None:
    """LeRobot's `(R, D)` or `(B, R, D)` as `(B, R, D)`, without the rows of zeros that it appends to a short one.

    Raises ConfigError for another shape.
    """
    if left_over is None:
        return None
    given = left_over[None] if left_over.dim() == 2 else left_over
    if given.dim() != 3 or given.shape[0] != robots or given.shape[2] != width:
        raise ConfigError(
            f"prev_chunk_left_over has shape {tuple(left_over.shape)}; expected ({robots}, steps, {width}): absolute "
            "actions in physical units, as predict_action_chunk returns them."
        )
    said = given.ne(0).flatten(2).any(2).any(0).nonzero().flatten()
    return given[:, : int(said[-1]) + 1] if len(said) else None

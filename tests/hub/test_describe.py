"""What `info` says of a model and its robots is what they do."""

from pathlib import Path

from tests.infer.tiny_policy import tiny_policy
from tests.model.tiny import backbone_options

from vla_mot.commands.info import facts
from vla_mot.hub.checkpoint import open_checkpoint
from vla_mot.hub.describe import departures


def told(policy, folder: Path) -> dict[str, str]:
    policy.save_pretrained(folder)
    return facts(open_checkpoint(folder))


def test_only_a_delta_robot_is_told_to_be_one(tmp_path):
    delta, absolute = (told(tiny_policy(action_mode=mode), tmp_path / mode) for mode in ("delta", "abs"))
    assert delta["conveyor/delta: action"] == "action: x [m, delta] y [m, delta] aperture [m]"
    assert absolute["conveyor/abs: action"] == "action: x [m] y [m] aperture [m]"


def test_how_the_released_2b_computes_otherwise_is_told(goldens):
    from tests.hub.test_released import opened

    assert facts(opened(goldens / "a1_2b_tiny", "a1_2b_tiny"))["computed"] == (
        "rope_base 10000 (its family: 1000000), scale_text true (its family: false), image_start_token_id none (its "
        "family: 151665), image_end_token_id none (its family: 151666), vision.attention_bias false (its family: true)"
    )


def test_a_model_of_its_family_departs_in_nothing():
    assert departures(backbone_options("internvl3", rope_base=1e6)) == "as its family does"
    assert (
        departures(backbone_options("qwen3_vl", rope_base=5e6, causal=True))
        == "causal true (its family: false)"
    )
    assert "rms_norm_eps 1e-05 (its family: 1e-06)" in departures(
        backbone_options("qwen3_vl", rms_norm_eps=1e-5)
    )

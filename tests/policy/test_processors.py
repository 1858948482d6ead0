"""LeRobot's loader on the processor files that `vla_mot.hub` writes without lerobot."""

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors

from tests.policy.conftest import HEAD
from vla_mot.hub.files import read_json
from vla_mot.hub.lerobot_processors import PROCESSOR_FILES


@pytest.fixture(params=["from the checkpoint", "from the config"])
def processors(request, native):
    config = PreTrainedConfig.from_pretrained(native, cli_overrides=["--device=cpu"])
    path = native if request.param == "from the checkpoint" else None
    return make_pre_post_processors(config, path)


def test_numbers_pass_unchanged(processors):
    before, after = processors
    state, picture, action = torch.rand(4), torch.rand(3, 8, 8), torch.rand(2, 3)
    seen = before({"observation.state": state, HEAD: picture, "task": "pick"})
    assert torch.equal(seen["observation.state"], state[None])
    assert torch.equal(seen[HEAD], picture[None])
    assert seen["task"] == ["pick"]
    assert torch.equal(after(action), action)


def test_padding_flags_and_the_index_reach_the_policy(processors):
    flags = {f"{HEAD}_is_pad": torch.ones(2, 3, dtype=torch.bool), "action_is_pad": torch.zeros(2, 4).bool()}
    batch = {
        HEAD: torch.rand(2, 3, 3, 8, 8),
        "action": torch.rand(2, 4, 3),
        "index": torch.arange(2),
        "task": ["a", "b"],
    }
    seen = processors[0](batch | flags)
    for key, value in (batch | flags).items():
        assert seen[key] == value if key == "task" else torch.equal(seen[key], value)


def test_lerobot_writes_what_it_read(processors, native, tmp_path):
    for pipeline in processors:
        pipeline.save_pretrained(tmp_path)
    written = {path.name: read_json(path) for path in tmp_path.iterdir()}
    assert written.keys() == PROCESSOR_FILES.keys()
    for name, content in PROCESSOR_FILES.items():
        assert [step["registry_name"] for step in written[name]["steps"]] == [
            step["registry_name"] for step in content["steps"]
        ]
        assert written[name] == read_json(native / name)


def test_the_overrides_of_lerobots_commands_apply(native):
    """`lerobot-eval` and `lerobot-train --policy.path` override steps by name and refuse a pipeline without them."""
    config = PreTrainedConfig.from_pretrained(native)
    statistics = {"observation.state": {"mean": torch.full((4,), 9.0), "std": torch.ones(4)}}
    features = {
        "features": config.input_features,
        "norm_map": config.normalization_mapping,
        "stats": statistics,
    }
    outputs = {
        "features": config.output_features,
        "norm_map": config.normalization_mapping,
        "stats": statistics,
    }
    before, _ = make_pre_post_processors(
        config,
        native,
        preprocessor_overrides={
            "device_processor": {"device": "cpu"},
            "normalizer_processor": features,
            "rename_observations_processor": {"rename_map": {"observation.images.front": HEAD}},
        },
        postprocessor_overrides={"unnormalizer_processor": outputs},
    )
    state = torch.rand(2, 4)
    seen = before({"observation.state": state, "observation.images.front": torch.rand(2, 3, 8, 8)})
    assert torch.equal(seen["observation.state"], state)  # the policy normalizes by its own statistics
    assert HEAD in seen

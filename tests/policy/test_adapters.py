"""LeRobot's `--peft.*`: what it adapts by default, and how an adapter becomes a whole policy again."""

import re

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from tests.policy.test_acting import observation
from vla_mot.hub.manifest import compare
from vla_mot.policy import VlaMotPolicy


@pytest.fixture
def adapted(native, tmp_path) -> PeftModel:
    """As `lerobot-train --peft.r=4` makes it, after it has learned something."""
    policy = VlaMotPolicy.from_pretrained(native)
    policy.config.pretrained_path = native
    wrapped = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 4})
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if ".lora_B." in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 0.05)
    wrapped.save_pretrained(tmp_path / "adapter")
    return wrapped.eval()


def test_every_linear_layer_of_experts_and_action_heads_is_adapted(native, adapted):
    plain = VlaMotPolicy.from_pretrained(native)
    linear = {name for name, module in plain.named_modules() if isinstance(module, nn.Linear)}
    wanted = {name for name in linear if name.startswith(("model.stack.layers.", "model.action."))}
    assert any(".experts.understanding." in name for name in wanted)
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert {name.split(".lora_")[0].removeprefix("base_model.model.") for name in trained} == wanted
    assert len(adapted.get_base_model().get_optim_params()[0]["params"]) == len(trained)


def test_the_page_merges_an_adapter_into_a_checkpoint(native, adapted, repository, tmp_path):
    page = (repository / "docs" / "lerobot.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def merge" in block)
    exec(code, names := {})
    names["merge"](str(native), str(tmp_path / "adapter"), str(tmp_path / "merged"))
    assert compare(tmp_path / "merged") == []
    before, after = (load_file(at / "model.safetensors") for at in (native, tmp_path / "merged"))
    assert before.keys() == after.keys()
    assert not torch.equal(before["action.out_proj.weight"], after["action.out_proj.weight"])
    merged, noise = VlaMotPolicy.from_pretrained(tmp_path / "merged"), torch.zeros(2, 4, 5)
    chunks = [policy.predict_action_chunk(observation(0), noise=noise) for policy in (merged, adapted)]
    torch.testing.assert_close(chunks[0], chunks[1], atol=1e-4, rtol=1e-4)

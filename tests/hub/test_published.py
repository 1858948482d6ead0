"""The published sizes, built without memory: every key, shape and count of the released files (FACTS §1, §10, §11)."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.composed import composed

from vla_mot.commands.training_settings import training_config
from vla_mot.errors import CheckpointError
from vla_mot.hub.conventions import require_conventions
from vla_mot.hub.files import read_json
from vla_mot.hub.released_architecture import infer_model
from vla_mot.hub.released_names import ReleasedNames, is_constant
from vla_mot.hub.tensors import TensorInfo
from vla_mot.model.config import ModelConfig
from vla_mot.model.model import VlaMotModel

SECTIONS = {"qwena1": "## 10.", "interna1": "## 11."}
COUNTS = {"qwena1": 3_222_760_208, "interna1": 1_835_996_688}
STATE_DICT = {"qwena1": 1466, "interna1": 1463}
PARTS = {  # FACTS §1
    "qwena1": {
        "generation": 440_467_456,
        "action": 440_467_456,
        "heads": 137_503_792,
        "autoencoder": 76_789_472,
    },
    "interna1": {
        "generation": 357_898_112,
        "action": 357_898_112,
        "heads": 105_291_696,
        "autoencoder": 76_789_472,
    },
}
TIED = "model.qwen3_vl_with_expert.und_expert.model.language_model.embed_tokens.weight"


@pytest.fixture(params=["qwena1", "interna1"])
def kind(request) -> str:
    return request.param


def listed(goldens: Path, kind: str) -> dict[str, tuple[int, ...]]:
    """Released key → shape, from the tables of FACTS.md."""
    text = (goldens / "FACTS.md").read_text()
    section = text[text.index(SECTIONS[kind]) :]
    section = section[: section.index("\n## ", 5)]
    rows = re.findall(r"^\| `([^`]+)` \| \[([^\]]*)\] \| (\d+) \| ([^|]*)\|", section, flags=re.MULTILINE)
    keys = {}
    for pattern, shape, count, places in rows:
        names = list(spelled(pattern, places.strip()))
        assert len(names) == int(count), pattern
        keys |= dict.fromkeys(names, tuple(int(side) for side in shape.split(",") if side.strip()))
    return keys


def spelled(pattern: str, places: str) -> Iterator[str]:
    """`0..23` and `0.0,0.1` fill one or two {}."""
    if not places:
        yield pattern
    for part in places.split(",") if places else []:
        if ".." in part:
            first, last = part.split("..")
            yield from (pattern.format(i) for i in range(int(first), int(last) + 1))
        else:
            yield pattern.format(*part.split("."))


def config(goldens: Path, kind: str) -> dict:
    """A published configuration: the tiny golden's, with the published variants' numbers."""
    tiny = "a1_3b_tiny" if kind == "qwena1" else "a1_2b_tiny"
    return read_json(goldens / tiny / "config.json") | {
        "chunk_size": 50,
        "n_action_steps": 50,
        "max_state_dim": 32,
        "max_action_dim": 32,
        "image_resolution": [224, 224],
        "num_inference_steps": 10,
        "qwen3_vl_variant": "qwen3_vl_28l",
        "action_expert_variant": "qwen3_28l",
        "internvl_variant": "internvl_24l",
        "qwen2_variant": "qwen2_24l",
    }


@pytest.fixture
def built(goldens, kind) -> tuple[ModelConfig, VlaMotModel, dict[str, tuple[int, ...]]]:
    keys = listed(goldens, kind)
    infos = {
        name: TensorInfo(shape, torch.bfloat16, Path("w")) for name, shape in keys.items() if name != TIED
    }
    model = ModelConfig.from_dict(infer_model(config(goldens, kind), infos, "published", {}))
    with torch.device("meta"):
        return model, VlaMotModel(model), keys


def test_every_key_and_shape(built, kind):
    _, model, keys = built
    assert len(keys) == STATE_DICT[kind]
    names, state = ReleasedNames(kind), model.state_dict()
    stored = {name: shape for name, shape in keys.items() if name != TIED and not is_constant(name)}
    assert {names.ours(name): shape for name, shape in stored.items()} == {
        name: tuple(tensor.shape) for name, tensor in state.items()
    }
    assert {names.theirs(name) for name in state} == stored.keys()


def test_every_count(built, kind):
    _, model, _ = built
    size = {name: tensor.numel() for name, tensor in model.named_parameters()}
    assert sum(size.values()) == COUNTS[kind]

    def total(*prefixes: str) -> int:
        return sum(count for name, count in size.items() if name.startswith(prefixes))

    experts = {}
    for name in ("generation", "action"):
        layers = sum(count for key, count in size.items() if f".experts.{name}." in key)
        experts[name] = layers + total(f"stack.norms.{name}.")
    found = experts | {"heads": total("generation.", "action."), "autoencoder": total("tokenizer.")}
    assert found == PARTS[kind]


def test_the_preset_is_the_published_architecture(built, kind):
    """conf/model builds what the released files hold, but for the habits that new models do not share."""
    model, _, _ = built
    name = "a1_3b" if kind == "qwena1" else "a1_2b"
    preset = training_config(composed("posttrain", f"model={name}", "data.root=x", "output=x")).model
    with torch.device("meta"):
        ours, theirs = VlaMotModel(preset).state_dict(), VlaMotModel(model).state_dict()
    own = {key for key in ours if key not in theirs}
    if kind == "interna1":  # InternVL3's own attention biases, which the released 2B dropped
        assert own and all(re.search(r"vision_tower.*attention.[qkv]_proj.bias", key) for key in own)
    else:
        assert not own
    assert {key: ours[key].shape for key in theirs} == {key: tensor.shape for key, tensor in theirs.items()}


# As docs/released.md has it: how the released 2B departs from InternVL3.
DEPARTURES = (
    "backbone.rope_base=1e4",
    "backbone.scale_text=true",
    "backbone.image_start_token_id=null",
    "backbone.image_end_token_id=null",
    "backbone.vision.attention_bias=false",
)


def test_a_released_policy_may_be_trained_on_with_the_preset(built, kind):
    """`init_from=`: what the preset does otherwise is what training may change, and is said."""
    model, _, _ = built
    words = ("model=a1_3b",) if kind == "qwena1" else ("model=a1_2b", *DEPARTURES)
    preset = training_config(composed("posttrain", *words, "data.root=x", "output=x")).model
    with torch.device("meta"):
        ours = VlaMotModel(preset)
    said = [text.split(":")[0] for text in require_conventions(ours, model, "published")]
    expected = ["action_loss", "foresight.dtype", "mask_padding"] + ["positions"] * (kind == "qwena1")
    assert said == expected
    if kind == "interna1":
        plain = training_config(composed("posttrain", "model=a1_2b", "data.root=x", "output=x")).model
        with torch.device("meta"):
            ours = VlaMotModel(plain)
        with pytest.raises(CheckpointError) as told:
            require_conventions(ours, model, "published")
        assert all(word.split("=")[0] in str(told.value) for word in DEPARTURES)

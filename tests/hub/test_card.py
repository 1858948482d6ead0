import ast
import importlib
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from vla_mot.errors import ConfigError
from vla_mot.hub.card import CardFacts, RobotFacts, Success, model_card
from vla_mot.version import __version__

ROBOT = RobotFacts("conveyor", 10, ("observation.images.head",), "x [m], y [m]", "x [m] | delta", "delta")
LEAST = CardFacts("mit", "A policy", "org/policy", (ROBOT,), chunk_size=50, n_action_steps=30, num_steps=10)
FULL = replace(
    LEAST,
    license="other",
    license_name="robot-terms",
    license_link="https://example.org/terms",
    robots=(ROBOT, replace(ROBOT, name="aloha", fps=12.5)),
    foresight="6 frames = 0.6 s ahead, tokenizer dct",
    architecture={"backbone": "qwen3_vl", "parameters": 3_200_000_000},
    dataset="300 episodes of the conveyor",
    datasets=("org/conveyor",),
    base_model=("Qwen/Qwen3-VL-2B-Instruct",),
    training={"steps": 60_000, "learning rate": 5e-5, "dropped": 0},
    validation={"action": 0.012345, "foresight": 1.5},
    success=(Success("conveyor", 0.755, 200, 0.69, 0.81), Success("real robot", 1.0, 5)),
    versions={"torch": "2.11.0"},
    commit="abc123",
    tags=("demo",),
    notes="Two colours only.",
)


def read(card: str) -> tuple[dict, str]:
    _, block, body = card.split("---\n", 2)
    return yaml.safe_load(block), body


def test_the_metadata():
    assert read(model_card(FULL))[0] == {
        "license": "other",
        "license_name": "robot-terms",
        "license_link": "https://example.org/terms",
        "library_name": "vla_mot",
        "pipeline_tag": "robotics",
        "tags": [
            "vision-language-action",
            "mixture-of-transformers",
            "visual-foresight",
            "robotics",
            "conveyor",
            "aloha",
            "demo",
        ],
        "datasets": ["org/conveyor"],
        "base_model": ["Qwen/Qwen3-VL-2B-Instruct"],
    }


def test_the_body_says_what_the_run_was():
    body = read(model_card(FULL))[1]
    for line in (
        "| conveyor | 10 Hz | `observation.images.head` | x [m], y [m] | x [m] / delta | delta |",
        "| aloha | 12.5 Hz | `observation.images.head` | x [m], y [m] | x [m] / delta | delta |",
        "- chunk: 50 actions predicted, 30 executed",
        "- sampler: 10 denoising steps",
        "- foresight: 6 frames = 0.6 s ahead, tokenizer dct",
        "- parameters: 3,200,000,000",
        "- dataset: 300 episodes of the conveyor",
        "- started from: [Qwen/Qwen3-VL-2B-Instruct](https://huggingface.co/Qwen/Qwen3-VL-2B-Instruct)",
        "- steps: 60,000",
        "- dropped: 0",
        "| action | 0.01235 |",
        "| conveyor | 76 % | 69 … 81 % | 200 |",
        "| real robot | 100 % | not given | 5 |",
        f"- vla_mot: {__version__}",
        "- torch: 2.11.0",
        "- commit: abc123",
        "Two colours only.",
        "These weights: [robot-terms](https://example.org/terms). The code of vla_mot: apache-2.0.",
    ):
        assert line in body.splitlines()


def test_what_is_not_known_is_left_out():
    metadata, body = read(model_card(LEAST))
    assert metadata.keys() == {"license", "library_name", "pipeline_tag", "tags"}
    assert re.findall("^## (.*)", body, re.MULTILINE) == ["Use", "Robots", "Versions", "Licence"]
    assert "None" not in body


def test_the_example_names_things_that_exist():
    lines = re.search("```python\n(.*?)```", model_card(LEAST), re.DOTALL)[1].splitlines()
    assert len([line for line in lines if line]) == 5
    tree = ast.parse("\n".join(lines))
    assert "Policy.from_pretrained('org/policy')" in ast.unparse(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert hasattr(importlib.import_module(node.module), node.names[0].name)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ((), '"org/policy")'),
        ((replace(ROBOT, name="aloha"),), '"org/policy", embodiment="conveyor")'),
        ((replace(ROBOT, action_mode="abs"),), '"org/policy", embodiment="conveyor", action_mode="delta")'),
    ],
)
def test_the_example_chooses_one_of_several_robots(others, said):
    assert f"Policy.from_pretrained({said}" in model_card(replace(LEAST, robots=(ROBOT, *others)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"license": "Apache 2.0"}, "got 'Apache 2.0'. Did you mean 'apache-2.0'?"),
        ({"license": ""}, "license: expected an identifier"),
        ({"license": "other"}, "license_name goes with license=other"),
        ({"license_name": "my terms"}, "license_name goes with license=other"),
        ({"robots": ()}, "at least one embodiment"),
        ({"datasets": ("/disk/data",)}, "datasets: expected ids of Hub repositories"),
        ({"base_model": ("outputs/run/policy",)}, "base_model: expected ids of Hub repositories"),
    ],
)
def test_facts_that_would_mislead_are_refused(change, said):
    with pytest.raises(ConfigError) as caught:
        replace(LEAST, **change)
    assert said in str(caught.value)


def test_a_licence_must_be_given():
    with pytest.raises(TypeError, match="license"):
        CardFacts(
            title="A policy",
            repo_id="org/policy",
            robots=(ROBOT,),
            chunk_size=1,
            n_action_steps=1,
            num_steps=1,
        )


def test_a_percentage_is_no_share():
    with pytest.raises(ConfigError, match="expected rate in 0 … 1, got 64"):
        Success("conveyor", 64, 200)


def test_a_card_needs_no_torch():
    code = "import sys, vla_mot.hub.card; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"

"""Loading holds one tensor more than the model, measured on a file of more than 1 GB."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.infer.tiny_policy import tiny_policy

from vla_mot.hub.native import save_policy
from vla_mot.model.model import VlaMotModel
from vla_mot.nn.expert import ExpertConfig

WIDE = ExpertConfig(hidden_size=1024, intermediate_size=16384)
SCRIPT = Path(__file__).with_name("loading_memory.py")


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    spec = tiny_policy().spec
    spec = replace(
        spec,
        model=replace(
            spec.model, generation=WIDE, action=WIDE, backbone=dict(spec.model.backbone, num_layers=3)
        ),
    )
    folder = tmp_path_factory.mktemp("large")
    save_policy(folder, spec, VlaMotModel(spec.model).state_dict())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["stored", "bfloat16"])
def test_loading_peaks_near_the_checkpoints_size(large, dtype):
    said = subprocess.run(
        [sys.executable, str(SCRIPT), str(large), dtype],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    found = json.loads(said.stdout)
    print(found)
    assert found["file"] > 1e9
    assert found["model"] == pytest.approx(found["file"] / (1 if dtype == "stored" else 2), rel=1e-3)
    assert found["RssAnon"] <= 1.2 * found["model"], found

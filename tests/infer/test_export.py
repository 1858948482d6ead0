"""Exported programs answer as the policy does, in every format that runs here."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file

from tests.infer.tiny_policy import GRIPPER, HEAD, SIZE, frames, states, tiny_policy
from tests.model.tiny import backbone_options
from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.hub.files import sha256
from vla_mot.infer.export import ExportedPolicy, ExportOptions, export_policy, widen
from vla_mot.infer.export.capture import capture
from vla_mot.infer.export.formats import write_program
from vla_mot.infer.export.golden import replay
from vla_mot.infer.export.stages import PREFIX, SEEN, Stage
from vla_mot.infer.policy import Policy
from vla_mot.infer.rtc import RtcConfig, continue_chunk
from vla_mot.infer.session import Session
from vla_mot.options import section

WORDS = "pick the red block"
COSMOS = {
    "type": "cosmos",
    "image_size": [32, 32],
    "channels": 32,
    "channel_multipliers": [1],
    "blocks_per_level": 1,
}
TOKENIZERS = {"dct": {"type": "dct", "image_size": [32, 32]}, "cosmos": COSMOS | {"spatial_compression": 8}}
TORCH_TOLERANCE = 1e-6
ONNX_TOLERANCE = 1e-4
"""Of actions: in units of the robot, whose deviations are 0.03 to 0.05. Reached here: see docs/export.md."""


def small_policy(family: str = "qwen3_vl", tokenizer: str = "dct", **backbone) -> Policy:
    """Two joint layers, one layer of vision."""
    options = backbone_options(family, **backbone)
    options["vision"] = options["vision"] | {"depth": 1}
    return tiny_policy(family=family, backbone=options, foresight=TOKENIZERS[tokenizer])


def exported(policy: Policy, folder: Path, **options) -> ExportedPolicy:
    export_policy(policy, folder, ExportOptions(**options))
    return ExportedPolicy.open(folder)


def answers(policy: Policy, rows: int, size: int = SIZE, **changes):
    """A chunk for a made-up scene; every robot sees, stands and is told something else."""
    images = {key: torch.stack((x, x.flip(-1)), dim=1)[..., :size, :size] for key, x in frames(rows).items()}
    return policy.predict(
        images, states(rows, 2), [WORDS[row:] for row in range(rows)], policy.noise(range(rows), 4), **changes
    )


def assert_bits(ours, theirs) -> None:
    assert torch.equal(ours.actions, theirs.actions) and torch.equal(ours.foresight, theirs.foresight)


def assert_close(ours, theirs, tolerance: float = ONNX_TOLERANCE) -> None:
    """Foresight, of cameras that are there, is of unit size; actions are of the size of their deviations."""
    torch.testing.assert_close(theirs.actions, ours.actions, rtol=0, atol=tolerance)
    torch.testing.assert_close(theirs.foresight[:, :2], ours.foresight[:, :2], rtol=0, atol=10 * tolerance)


def golden(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "golden.safetensors")


@pytest.fixture(scope="module")
def policy() -> Policy:
    return small_policy()


@pytest.fixture(scope="module")
def folder(policy, tmp_path_factory) -> Path:
    """`torch.export` programs for one robot."""
    place = tmp_path_factory.mktemp("torch") / "programs"
    export_policy(policy, place, ExportOptions())
    return place


@pytest.fixture(scope="module")
def programs(folder) -> ExportedPolicy:
    return ExportedPolicy.open(folder)


def test_torch_programs_are_the_policy_to_the_bit(policy, programs):
    assert_bits(answers(policy, 1), answers(programs, 1))


def test_they_drive_a_session(policy, programs):
    ours, theirs = (Session(it, seeds=[3]) for it in (policy, programs))
    for step in range(5):
        seen = (frames(1, step), states(1, step), WORDS)
        assert torch.equal(ours.act(*seen), theirs.act(*seen))


@pytest.mark.parametrize(
    "how", [{"num_steps": 2}, {"solver": "heun"}, {"solver": "midpoint", "num_steps": 1}]
)
def test_they_sample_in_other_ways(policy, programs, how):
    ours, theirs = answers(policy.with_sampler(**how), 1), answers(programs.with_sampler(**how), 1)
    assert_bits(ours, theirs)


def guide(policy: Policy, **how):
    """Real-time chunking: goes on with a chunk of three steps, one of them already executed."""
    left_over = torch.full((1, 3, 3), 0.1)
    return continue_chunk(
        RtcConfig(**how), left_over, 1, states(1, 2), policy.noise([0], 4), policy.processor
    )


@pytest.mark.parametrize("how", [{}, {"jacobian": "identity"}, {"mode": "frozen"}])
def test_they_go_on_with_a_chunk_as_the_policy_does(policy, programs, how):
    ours = answers(policy, 1, guide=guide(policy, **how))
    assert_bits(ours, answers(programs, 1, guide=guide(programs, **how)))
    assert not torch.equal(ours.actions, answers(policy, 1).actions)


def test_the_golden_answers_are_replayed(folder, programs):
    found = replay(programs, golden(folder))
    assert found.keys() == {
        *(f"prefill.{name}" for name in (*PREFIX, "foresight")), "denoise.velocity", "policy.actions",
    }  # fmt: skip
    assert max(found.values()) == 0


@pytest.mark.parametrize(
    "part", [*SEEN, "x", "noise_level", "policy.noise", "policy.images", "policy.instruction"]
)
def test_a_replay_depends_on_everything_that_was_given(folder, programs, part):
    recorded = golden(folder)
    turned = ~recorded[part] if recorded[part].dtype == torch.bool else recorded[part].flip(-1)
    changed = turned * 0.5 if part == "noise_level" else turned
    assert max(replay(programs, recorded | {part: changed}).values()) > 1e-4


def test_a_program_holds_the_weights_that_it_reads(folder, policy):
    held = torch.export.load(folder / "denoise.pt2").state_dict
    names = {name.removeprefix("model.") for name in held}
    assert names <= policy.model.state_dict().keys()
    expert = {name for name in policy.model.state_dict() if ".experts.action." in name}
    assert expert < names and "action.in_proj.weight" in names and "action.state_proj.weight" not in names
    assert not [name for name in names - expert if not name.startswith(("action.", "stack.norms.action."))]
    sizes = [(folder / f"{stage}.pt2").stat().st_size for stage in ("denoise", "prefill")]
    assert sizes[0] < sizes[1] / 2


def test_what_goes_in_and_comes_out_is_written_down(folder):
    told, recorded = json.loads((folder / "program.json").read_text()), golden(folder)
    for stage in told["stages"].values():
        for fact in (*stage["inputs"], *stage["outputs"]):
            tensor = recorded[fact["name"]]
            assert fact["shape"] == list(tensor.shape) and f"torch.{fact['dtype']}" == str(tensor.dtype)
    assert told["robot"]["cameras"] == {"0": HEAD, "1": GRIPPER}
    assert told["robot"]["relative_to_state"] == [True, True, False]
    assert told["sampler"] == {"num_steps": 3, "n_action_steps": 3, "solver": "euler", "noise_dims": 3}


def test_bytes_of_another_size_are_rounded_and_that_is_said_once(policy, programs, caplog):
    with caplog.at_level(logging.WARNING, "vla_mot.infer.export"):
        ours, theirs = answers(policy, 1, size=24), answers(programs, 1, size=24)
        answers(programs, 1, size=24)
    assert sum("rounded to bytes" in record.message for record in caplog.records) == 1
    assert not torch.equal(ours.actions, theirs.actions)
    torch.testing.assert_close(theirs.actions, ours.actions, rtol=0, atol=2e-2)


def test_latents_are_for_programs_that_take_them(programs):
    latents = torch.zeros(1, 2, 2, 16, 4, 4)
    with pytest.raises(ConfigError, match="export with latents=true"):
        answers(programs, 1, latents=latents)
    with pytest.raises(ConfigError, match="stage 'encode' was not exported"):
        programs.encode(frames(1))


def test_there_are_no_weights_to_save(programs, tmp_path):
    with pytest.raises(ConfigError, match="open the checkpoint it came from"):
        programs.save_pretrained(tmp_path / "saved")


# ---- folders that are not what was exported ------------------------------------------------------------------


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / "denoise.pt2").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "denoise.pt2").write_bytes(content)


def say_another_file(folder: Path) -> None:
    told = json.loads((folder / "program.json").read_text())
    told["stages"]["denoise"]["file"] = "../elsewhere.pt2"
    (folder / "program.json").write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip_a_byte, "denoise.pt2 was changed"),
        (lambda f: (f / "prefill.pt2").unlink(), "prefill.pt2 is missing"),
        (lambda f: (f / "more.pt2").write_bytes(b""), "more.pt2 is not in the manifest"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda f: (f / "program.json").unlink(), "holds no program.json"),
        (lambda f: (f / "program.json").write_text("{"), "program.json is damaged"),
        (lambda f: (f / "program.json").write_text('{"version": 2}'), "is of version 2"),
        (lambda f: (f / "program.json").write_text('{"version": 1}'), "is damaged"),
        (say_another_file, "point outside the folder"),
    ],
)
def test_nothing_is_opened_of_a_folder_that_was_changed(copy, damage, said):
    damage(copy)
    with pytest.raises(CheckpointError, match=said):
        ExportedPolicy.open(copy)


def test_a_hash_that_was_kept_elsewhere_is_compared(copy):
    found = sha256(copy / "manifest.json")
    with pytest.raises(CheckpointError, match=f"is {found}, expected {'0' * 64}"):
        ExportedPolicy.open(copy, sha256="0" * 64)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "torch_exprt"}, "nearest|torch_export"),
        ({"stages": ["prefill"]}, "only work together"),
        ({"stages": []}, "must name programs"),
        ({"stages": ["sample", "sample"]}, "each once"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"external_data": True}, "for format=onnx alone"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        section(ExportOptions, "", options)


def test_a_used_folder_is_refused(policy, tmp_path):
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(ConfigError, match="is not empty"):
        export_policy(policy, tmp_path, ExportOptions())


def test_without_its_packages_a_format_names_the_extra(policy, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"needs onnxscript.*pip install 'vla-mot\[export\]'"):
        export_policy(policy, tmp_path / "out", ExportOptions(format="onnx"))
    assert not (tmp_path / "out").exists()


def test_without_a_compiler_nothing_is_compiled(policy, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="needs a C\\+\\+ compiler, and 'no-such-compiler' is none"):
        export_policy(policy, tmp_path / "out", ExportOptions(format="aoti"))


class Decomposed(Stage):
    """What ONNX has no operator for."""

    inputs, outputs = ("x",), ("q",)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (torch.linalg.qr(x).Q,)


def test_what_onnx_cannot_express_is_said(policy, tmp_path):
    stage = Decomposed(policy.model)
    program = capture(stage, {"x": torch.eye(3)})
    with pytest.raises(ConfigError, match=r"odd cannot be written as ONNX: .*qr"):
        write_program("onnx", program, stage, tmp_path / "odd.onnx")


def test_narrow_weights_are_refused_for_onnx_and_can_be_widened(tmp_path):
    narrow = small_policy(tokenizer="cosmos")
    narrow.model.cast(torch.bfloat16)
    narrow.model.tokenizer.bfloat16()
    with pytest.raises(ConfigError, match=r"is torch\.bfloat16"):
        export_policy(narrow, tmp_path / "out", ExportOptions(format="onnx"))
    assert any(name.startswith("tokenizer.") for name in widen(narrow.model))
    assert {weight.dtype for weight in narrow.model.parameters()} == {torch.float32}
    assert widen(narrow.model) == []


# ---- ONNX ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_policy() -> Policy:
    """The other family, of one layer; pictures are resized (bicubic, antialiased) before the tower."""
    return small_policy("internvl3", num_layers=1, image_size=[48, 48])


@pytest.fixture(scope="module")
def onnx_folder(other_policy, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("onnx") / "programs"
    export_policy(other_policy, place, ExportOptions(format="onnx", external_data=True))
    return place


def test_onnx_programs_answer_like_the_policy(other_policy, onnx_folder):
    programs = ExportedPolicy.open(onnx_folder)
    assert_close(answers(other_policy, 1), answers(programs, 1))
    assert max(replay(programs, golden(onnx_folder)).values()) < ONNX_TOLERANCE
    assert_close(*(answers(it, 1, guide=guide(it, mode="frozen")) for it in (other_policy, programs)))
    with pytest.raises(ConfigError, match=r"carry no gradients.*jacobian='identity'"):
        answers(programs, 1, guide=guide(programs))
    with pytest.raises(ConfigError, match="batch=null"):
        answers(programs, 2)


def test_onnx_programs_hold_onnx_operators_alone_and_their_weights_beside(onnx_folder):
    for stage in ("prefill", "denoise"):
        model = onnx.load(onnx_folder / f"{stage}.onnx", load_external_data=False)
        assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18}
        assert not model.functions and {node.domain for node in model.graph.node} == {""}
        onnx.checker.check_model(onnx_folder / f"{stage}.onnx")
        data = onnx_folder / f"{stage}.onnx.data"
        assert data.stat().st_size > 10 * (onnx_folder / f"{stage}.onnx").stat().st_size / 100
    assert (onnx_folder / "denoise.onnx.data").stat().st_size < (
        onnx_folder / "prefill.onnx.data"
    ).stat().st_size


def test_the_numpy_lines_of_the_documentation_give_the_actions(onnx_folder, repository):
    page = (repository / "docs" / "export.md").read_text()
    (lines,) = [block for block in page.split("```python\n")[1:] if "import onnxruntime" in block]
    found = {"folder": str(onnx_folder)}
    exec(lines.partition("```")[0], found)
    wanted = golden(onnx_folder)["policy.actions"]
    torch.testing.assert_close(torch.from_numpy(found["actions"]), wanted, rtol=0, atol=ONNX_TOLERANCE)


# ---- every family and format, the other tokenizer, other conventions -------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_vl", "internvl3"])
@pytest.mark.parametrize("format", ["torch_export", "onnx"])
def test_every_family_exports_with_an_autoencoder_for_any_number_of_robots(tmp_path, format, family):
    policy = small_policy(family, "cosmos", image_size=[48, 48])
    programs = exported(policy, tmp_path / "out", format=format, batch=None)
    told = json.loads((tmp_path / "out" / "program.json").read_text())["stages"]["denoise"]["inputs"]
    assert [fact["shape"].index(None) for fact in told] == [1, 1, 0, 0, 0, 0]
    for rows in (1, 3):
        assert_close(
            answers(policy, rows),
            answers(programs, rows),
            TORCH_TOLERANCE if format == "torch_export" else ONNX_TOLERANCE,
        )


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch_export", "onnx"])
def test_all_steps_in_one_program_from_latents(policy, tmp_path, format):
    programs = exported(policy, tmp_path / "out", format=format, stages=("sample",), latents=True)
    assert_close(
        answers(policy, 1),
        answers(programs, 1),
        TORCH_TOLERANCE if format == "torch_export" else ONNX_TOLERANCE,
    )
    assert (tmp_path / "out" / f"encode.{'pt2' if format == 'torch_export' else 'onnx'}").is_file()
    sessions = (Session(policy, seeds=[3]), Session(programs, seeds=[3], remember_latents=True))
    for step in range(5):
        ours, theirs = (session.act(frames(1, step), states(1, step), WORDS) for session in sessions)
        torch.testing.assert_close(theirs, ours, rtol=0, atol=ONNX_TOLERANCE)
    for changes in ({"guide": guide(policy)}, {}):
        other = programs if changes else programs.with_sampler(num_steps=2)
        with pytest.raises(ConfigError, match=r"stages=\[prefill,denoise\]"):
            answers(other, 1, **changes)


@pytest.mark.slow
def test_with_floats_pictures_of_any_size_give_the_policy_to_the_bit(policy, tmp_path):
    programs = exported(policy, tmp_path / "out", pixels="float32", batch=2)
    for size in (SIZE, 24):
        assert_bits(answers(policy, 2, size), answers(programs, 2, size))


@pytest.mark.slow
def test_bfloat16_programs_are_the_policy_to_the_bit(tmp_path):
    narrow = small_policy("internvl3", "cosmos")
    narrow.model.cast(torch.bfloat16)
    narrow = Policy(narrow.model, replace(narrow.spec, dtype="bfloat16"))
    assert_bits(answers(narrow, 1), answers(exported(narrow, tmp_path / "out"), 1))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"deepstack": True, "causal": True}, {}])
def test_deepstack_causal_text_and_released_conventions_export(tmp_path, changes):
    options = backbone_options("qwen3_vl", **changes)
    policy = tiny_policy(backbone=options, positions="released", mask_padding=False)
    assert_bits(answers(policy, 1), answers(exported(policy, tmp_path / "out"), 1))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_packages_answer_like_the_policy(policy, tmp_path):
    programs = exported(policy, tmp_path / "out", format="aoti")
    assert_close(answers(policy, 1), answers(programs, 1), 1e-5)
    assert max(replay(programs, golden(tmp_path / "out")).values()) < 1e-4

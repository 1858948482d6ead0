"""What `verify` says of files that are gone and of dimensions that never move."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.infer.tiny_policy import tiny_policy
from vla_mot.hub.checkpoint import open_checkpoint
from vla_mot.hub.manifest import write_manifest
from vla_mot.infer.golden import record_golden
from vla_mot.infer.policy import Policy
from vla_mot.infer.verify import Check, verify


@pytest.fixture
def saved(policy, tmp_path) -> Path:
    policy.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def checks(folder: Path) -> dict[str, Check]:
    return {check.name: check for check in verify(open_checkpoint(folder))}


def without_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def without_golden(folder: Path) -> None:
    (folder / "golden.safetensors").unlink()
    write_manifest(folder)


def test_a_golden_answer_is_given_in_full_precision(policy):
    """Whoever saves may have TensorFloat-32 on, as lerobot-train does; whoever verifies has not."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before, seen = [backend.allow_tf32 for backend in backends], set()
    hook = policy.model.action.out_proj.register_forward_hook(
        lambda *_: seen.update(backend.allow_tf32 for backend in backends)
    )
    try:
        for backend in backends:
            backend.allow_tf32 = True
        record_golden(policy)
        assert seen == {False} and all(backend.allow_tf32 for backend in backends)
    finally:
        hook.remove()
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def manifest_as_folder(folder: Path) -> None:
    without_manifest(folder)
    (folder / "manifest.json").mkdir()


@pytest.mark.parametrize(
    ("damage", "failed"),
    [
        (without_manifest, ["files"]),
        (manifest_as_folder, ["files"]),
        (without_golden, ["golden answer"]),
        (lambda f: (without_golden(f), without_manifest(f)), ["files", "golden answer"]),
    ],
)
def test_what_every_checkpoint_of_ours_has_may_not_be_missing(saved, damage, failed):
    assert all(check.passed for check in checks(saved).values())
    damage(saved)
    assert [name for name, check in checks(saved).items() if check.passed is False] == failed


def still(policy: Policy, what: str, dims: list[int]) -> Policy:
    """The policy of a robot of which these dimensions never moved in the data."""
    (robot,) = policy.spec.robots
    numbers = getattr(robot.statistics, what)
    held = torch.zeros_like(numbers.mean, dtype=torch.bool)
    held[dims] = True
    constant = replace(
        numbers,
        std=numbers.std.masked_fill(held, 0.0),
        min=torch.where(held, numbers.mean, numbers.min),
        max=torch.where(held, numbers.mean, numbers.max),
    )
    told = replace(robot, statistics=replace(robot.statistics, **{what: constant}))
    return Policy(policy.model, replace(policy.spec, robots=(told,)))


@pytest.mark.parametrize(
    ("what", "dims", "passed", "said"),
    [
        ("state", [], True, "finite and ordered; none is constant"),
        ("state", [1, 3], True, "finite and ordered; constant in the data: state y, state grip"),
        ("action", [2], True, "finite and ordered; constant in the data: action aperture"),
        ("action", [0, 1, 2], False, "every dimension of the action is constant"),
        ("state", [0, 1, 2, 3], False, "every dimension of the state is constant"),
    ],
)
def test_dimensions_that_never_move_are_named(tmp_path, what, dims, passed, said):
    still(tiny_policy(), what, dims).save_pretrained(tmp_path / "saved")
    check = checks(tmp_path / "saved")["statistics of conveyor/delta"]
    assert (check.passed, check.text) == (passed, said)


def test_a_copy_elsewhere_verifies(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    assert all(check.passed for check in checks(tmp_path / "copy").values())

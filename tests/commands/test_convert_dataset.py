import pytest

from tests.data.v21 import write_legacy


@pytest.fixture(scope="module")
def legacy(tmp_path_factory):
    return write_legacy(tmp_path_factory.mktemp("legacy") / "old").root


def test_a_dataset_is_converted_and_the_result_can_be_used(vla_mot, legacy, tmp_path):
    said = vla_mot("data", "convert", f"root={legacy}", f"output={tmp_path / 'new'}")
    assert said.code == 0, said.err
    assert "converted 3 episodes, 29 frames at 10 fps" in said.out
    assert "pictures of observation.images.top, observation.images.wrist" in said.out
    again = vla_mot("data", "convert", f"root={tmp_path / 'new'}", f"output={tmp_path / 'newer'}")
    assert (again.code, "has LeRobot format v3.0 already" in again.err) == (2, True)


@pytest.mark.parametrize("inside", [".", "new"])
def test_the_output_lies_outside_of_the_input(vla_mot, legacy, inside):
    said = vla_mot("data", "convert", f"root={legacy}", f"output={legacy / inside}")
    assert (said.code, "which is to stay as it is" in said.err) == (2, True)


def test_a_used_output_is_refused(vla_mot, legacy, tmp_path):
    (tmp_path / "kept").touch()
    said = vla_mot("data", "convert", f"root={legacy}", f"output={tmp_path}")
    assert (said.code, "is already used" in said.err) == (2, True)
    assert (tmp_path / "kept").exists()


def test_both_folders_are_required(vla_mot):
    said = vla_mot("data", "convert")
    assert (said.code, "root must be given" in said.err) == (2, True)

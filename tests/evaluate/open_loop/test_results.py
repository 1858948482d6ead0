import csv
import json

import pytest

from vla_mot.evaluate.open_loop.errors import joined
from vla_mot.evaluate.open_loop.results import (
    ERRORS_FILE,
    ERRORS_HEAD,
    FORESIGHT_FILE,
    FORESIGHT_HEAD,
    RESULTS_FILE,
)
from vla_mot.evaluate.results import find_evaluations


@pytest.fixture
def saved(result, tmp_path):
    result.save(tmp_path)
    return tmp_path


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_errors_have_a_row_per_dataset_dimension_step_and_method(saved, result):
    found = rows(saved / ERRORS_FILE)
    assert tuple(found[0]) == ERRORS_HEAD
    assert len(found) == 2 * 3 * 4 * 2
    assert {row["dataset"] for row in found} == {"a/one", "<two>"}, "a film has no actions"
    place = {"dataset": "<two>", "dimension": "gripper", "step": "3", "method": "hold"}
    (row,) = (row for row in found if place.items() <= row.items())
    assert (row["embodiment"], row["unit"], row["kind"]) == ("lifter", "m", "gripper")
    assert (float(row["seconds"]), int(row["count"])) == (pytest.approx(0.3), 4), (
        "the last moment ends after two"
    )
    errors = result.datasets[1].errors
    mae, mse = errors.horizon(errors.single(2))[1, :, 3]
    assert (float(row["mae"]), float(row["mse"])) == pytest.approx((mae, mse))
    turn = [row for row in found if row["dimension"] == "turn"]
    assert {(row["unit"], row["kind"]) for row in turn} == {("rad", "joint")}


def test_the_steps_add_up_to_the_whole(saved, result):
    mine = [
        row
        for row in rows(saved / ERRORS_FILE)
        if (row["dataset"], row["dimension"], row["method"]) == ("a/one", "lift", "policy")
    ]
    counts = [int(row["count"]) for row in mine]
    whole = sum(float(row["mse"]) * count for row, count in zip(mine, counts, strict=True)) / sum(counts)
    errors = result.datasets[0].errors
    assert errors.score(errors.single(1)).mse.value == pytest.approx(whole)


def test_foresight_has_a_row_per_dataset_camera_and_method(saved, result):
    found = rows(saved / FORESIGHT_FILE)
    assert tuple(found[0]) == FORESIGHT_HEAD
    assert len(found) == (2 + 2 + 1) * 3
    film = [row for row in found if row["dataset"] == "film"]
    assert {row["camera"] for row in film} == {"head"}
    score = result.datasets[2].pictures.score("head", "copy_last")
    (row,) = (row for row in film if row["method"] == "copy_last")
    assert float(row["psnr"]) == pytest.approx(score.psnr.value)
    assert float(row["ssim_low"]) == pytest.approx(score.ssim.low)
    assert row["count"] == "4"


def test_json_is_per_embodiment_and_per_dataset(saved, result):
    found = json.loads((saved / RESULTS_FILE).read_text())
    assert list(found["embodiments"]) == ["lifter", "eye"]
    lifter = found["embodiments"]["lifter"]["actions"]
    both = joined([result.datasets[0].errors, result.datasets[1].errors])
    assert (lifter["chunks"], lifter["episodes"], lifter["action_mode"]) == (10, 4, "delta")
    assert lifter["dimensions"]["turn"]["policy"]["mse"]["value"] == pytest.approx(
        both.score(both.single(0)).mse.value
    )
    assert lifter["dimensions"]["gripper"]["kind"] == "gripper"
    assert {"joints (rad)", "grippers (m)", "all (deviations)"} <= set(lifter["groups"])
    assert found["embodiments"]["eye"]["actions"] is None
    film = found["datasets"][2]
    assert (film["dataset"], film["moments"], film["offset_frames"]) == ("film", 5, 3)
    assert "foresight alone" in film["notes"][0]
    assert found["provenance"] == {"checkpoint": "runs/<a>"}


def test_a_report_does_not_take_it_for_episodes_in_closed_loop(saved):
    assert find_evaluations(saved) == []

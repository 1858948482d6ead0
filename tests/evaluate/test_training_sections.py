"""What a run's log becomes on the page."""

import numpy as np
import pytest
from PIL import Image

from tests.evaluate.test_report import Page
from vla_mot.evaluate.curves import SERIES
from vla_mot.evaluate.report import ReportContent, render_report
from vla_mot.evaluate.training_sections import engine, losses_by_origin, validation


def train(step: int, datasets: int = 2) -> dict:
    told = {
        "step": step,
        "kind": "train",
        "action_loss": 2.0 / step,
        "foresight_loss": 1.0 / step,
        "seconds": step,
    }
    for number in range(datasets):
        told[f"dataset/lab/d{number}/action_loss"] = (1 + number) / step
        told[f"dataset/lab/d{number}/foresight_loss"] = 0.5 / step
    told |= {"embodiment/conveyor/action_loss": 1.0 / step}
    told |= {f"grad_norm/{name}": 0.1 * step for name in ("vision", "generation", "action")}
    told |= {"lr/action": 1e-4, "lr/vision": 1e-5, "grad_norm": "nan"}
    return told | {"samples_per_second": 300.0, "machine/data_wait": 0.25, "machine/memory_gib": 3.5}


def validated(step: int) -> dict:
    return {
        "step": step, "kind": "validation", "action_loss": 1.0, "foresight_loss": 0.5, "action_mae_normalized": 0.3,
        "action_mae/conveyor/x (m)": 0.5 / step, "action_rmse/conveyor/x (m)": 0.625 / step,
        "action_mae/conveyor/grip <1> (1)": 0.75 / step, "action_rmse/conveyor/grip <1> (1)": 0.875,
        "action_mae/conveyor (m)": 0.5 / step, "action_rmse/conveyor (m)": 0.625 / step,
        "foresight/mse": 0.2, "foresight/copy_mse": 0.4, "foresight/moving_mse": 0.3, "foresight/moving_copy_mse": 1.2,
    }  # fmt: skip


LOG = sorted([train(s) for s in range(1, 30)] + [validated(s) for s in (10, 20)], key=lambda r: r["step"])


def test_dimensions_are_listed_with_units_and_where_they_began():
    page = Page(validation(LOG, {}))
    said = page.said.replace("\u00a0", " ")
    for words in (
        "Open-loop action error, conveyor",
        "x 0.025 m 0.03125 m 0.05 m",
        "grip <1> 0.0375 0.875 0.075",
        "all in m 0.025 m",
        "copy of the last frame",
    ):
        assert words in said, words


def test_losses_are_drawn_apart_only_where_there_are_several():
    assert losses_by_origin([train(s, datasets=1) for s in range(1, 5)]) == ""
    said = Page(losses_by_origin(LOG)).said
    assert "action loss by dataset" in said and "lab/d1 0.06897 0.01724" in said
    assert "by robot" not in said, "there is one robot"


def test_of_many_datasets_the_worst_are_drawn_and_all_are_listed():
    many = SERIES + 3
    said = Page(losses_by_origin([train(s, datasets=many) for s in range(1, 5)])).said
    drawn, listed = said.split("newest losses by dataset")
    assert f"lab/d{many - 1}" in drawn and "lab/d0 " not in drawn.partition("foresight loss by")[0]
    assert all(f"lab/d{number} " in listed for number in range(many))


def test_the_engine_says_what_was_logged_and_no_more():
    said = Page(engine(LOG)).said.replace("\u00a0", " ")
    assert "vision, generation, action" in said, "equal lines are one"
    assert "gradient norm" in said and "learning rate" in said and "25 % of the time" in said
    assert "utilisation of" not in said, "nothing was measured"
    assert "understanding" not in said


def test_spikes_and_steps_that_were_left_out_are_listed():
    odd = [{"step": 1000 + s, "kind": "spike", "loss": 9.0} for s in range(30)]
    said = Page(engine([*LOG, *odd, {"step": 7, "kind": "skipped", "skipped": 1}])).said
    assert "Loss stood out step 1,010, 1,011" in said and "1,029 (the last 20 of 30)" in said
    assert "Left out: loss or gradient was not finite step 7" in said


def test_the_newest_picture_is_shown_whole(tmp_path):
    for step in (5, 12):
        Image.fromarray(np.full((20, 30, 3), step, np.uint8)).save(tmp_path / f"{step}.png")
    page = Page(
        render_report(ReportContent("x", records=LOG, pictures={s: tmp_path / f"{s}.png" for s in (12, 5)}))
    )
    assert "at step 12" in page.said
    assert [kind for kind in page.references if kind.startswith("data:image/png")]
    assert all(reference.startswith(("data:", "#")) for reference in page.references)


@pytest.mark.parametrize("section", [losses_by_origin, engine, lambda records: validation(records, {})])
def test_a_log_of_an_older_run_leaves_sections_out(section):
    old = [{"step": 1, "kind": "train", "action_loss": 1.0, "foresight_loss": 1.0},
           {"step": 1, "kind": "validation", "action_loss": 1.0, "foresight_loss": 1.0}]  # fmt: skip
    assert section(old) == ""

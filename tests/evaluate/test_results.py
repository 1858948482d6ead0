import csv
import json
import re
from dataclasses import replace
from math import nan

import pytest

from tests.evaluate.found import arm, evaluation, foresight
from vla_mot.commands.tables import show_foresight, show_success
from vla_mot.errors import ConfigError
from vla_mot.evaluate.intervals import Interval
from vla_mot.evaluate.report import ReportContent, render_report
from vla_mot.evaluate.results import Arm, Evaluation, compare


def test_what_is_saved_is_what_is_loaded(tmp_path):
    found = evaluation()
    found.save(tmp_path / "new" / "folder")
    again = Evaluation.load(tmp_path / "new" / "folder")
    assert again.arms == found.arms and again.provenance == found.provenance
    assert again.foresight.scores == found.foresight.scores


def test_an_evaluation_without_foresight_or_episodes_round_trips(tmp_path):
    found = Evaluation((arm("policy", 0, 0),))
    found.save(tmp_path)
    assert Evaluation.load(tmp_path) == found


def test_files_are_for_other_programs_too(tmp_path):
    evaluation().save(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    policy = results["arms"][0]
    assert (policy["successes"], policy["episodes"]) == (7, 10)
    assert policy["verdicts"] == {"success": 7, "time_out": 3}
    assert policy["success_rate"]["low"] == pytest.approx(0.397, abs=1e-3)
    assert results["comparisons"]["no_history"]["difference"]["value"] == pytest.approx(0.5)
    with (tmp_path / "episodes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 and rows[0]["arm"] == "policy" and rows[0]["verdict"] == "success"
    for name in ("results.json", "foresight.json"):
        assert "NaN" not in (tmp_path / name).read_text()


def two_tasks(found: Arm) -> Arm:
    """The same episodes, of which the odd ones asked for something else."""
    tasks = ("push <it> [/there]", "lift it")
    return replace(found, episodes=tuple(replace(e, task=tasks[e.seed % 2]) for e in found.episodes))


def test_success_is_told_for_every_task(tmp_path, capsys):
    found = two_tasks(arm("policy", 7, 10, "Trained policy"))
    assert [(task, one.successes, len(one.episodes)) for task, one in found.by_task().items()] == [
        ("lift it", 3, 5),
        ("push <it> [/there]", 4, 5),
    ]
    Evaluation((found,)).save(tmp_path)
    told = json.loads((tmp_path / "results.json").read_text())["arms"][0]["tasks"]
    assert told["push <it> [/there]"]["successes"] == 4
    assert told["push <it> [/there]"]["success_rate"]["value"] == 0.8
    show_success(Evaluation((found,)))
    shown = capsys.readouterr().out
    assert re.search(r"lift it\W+3/5\W+23 … 88 %", shown) and "push <it> [/there]" in shown
    assert "first minus this" not in shown
    page = render_report(ReportContent("A run", evaluation=Evaluation((found,))))
    assert "Trained policy, by task" in page and "push &lt;it&gt;" in page


def test_one_task_needs_no_table_of_tasks(capsys):
    show_success(evaluation())
    shown = capsys.readouterr().out
    assert "by task" not in shown and "first minus this" in shown
    assert "by task" not in render_report(ReportContent("A run", evaluation=evaluation()))


def test_arms_are_compared_over_the_seeds_that_both_ran():
    first, second = arm("a", 5, 10), arm("b", 3, 10)
    later = replace(second, episodes=tuple(replace(e, seed=e.seed + 5) for e in second.episodes))
    assert compare(first, second).only_first == 2
    assert compare(first, later).only_second == 3  # seeds 5 … 7: the first failed there, the second did not
    elsewhere = replace(second, episodes=tuple(replace(e, seed=e.seed + 99) for e in second.episodes))
    with pytest.raises(ValueError, match="paired episodes"):
        compare(first, elsewhere)
    assert Evaluation((first, second, replace(elsewhere, name="c"))).comparisons().keys() == {"b"}


def test_scenes_of_two_tasks_may_share_a_seed():
    """The same seed of another task is another scene, and is compared with its like alone."""
    first, second = arm("a", 5, 10), arm("b", 3, 10)
    both = [
        replace(
            one, episodes=one.episodes + tuple(replace(e, task="lift it", success=won) for e in one.episodes)
        )
        for one, won in ((first, True), (second, False))
    ]
    found = compare(*both)
    assert (found.only_first, found.only_second) == (2 + 10, 0)
    other = replace(second, episodes=tuple(replace(e, task="lift it") for e in second.episodes))
    assert Evaluation((first, other)).comparisons() == {}


def test_a_foresight_without_ends_is_told_without_them(capsys):
    """As of one episode; and whether training may have seen it."""
    alone = [
        replace(s, mse=Interval(s.mse.value, nan, nan), ratio=Interval(s.ratio.value, nan, nan))
        for s in foresight().scores
    ]
    report = replace(foresight(), scores=tuple(alone), episodes=1, trained_on=True)
    show_foresight(report)
    shown = capsys.readouterr().out
    page = render_report(ReportContent("A run", evaluation=replace(evaluation(), foresight=report)))
    for text in (shown, re.sub('base64,[^"]*', "", page)):
        assert "0.250" in text and "nan" not in text and "that training may have seen" in text
    assert 'width="100.00"' in page, "bars are as long as their values"


def test_a_folder_without_results_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"results\.json is missing; run `vla-mot evaluate` first"):
        Evaluation.load(tmp_path)


@pytest.mark.parametrize("file", ["results.json", "episodes.csv", "foresight.json", "foresight.npz"])
def test_a_damaged_file_is_an_error(tmp_path, file):
    evaluation().save(tmp_path)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match="is damaged"):
        Evaluation.load(tmp_path)

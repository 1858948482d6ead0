"""What a page is made of: every evaluation below a folder, and films of the arm that it names."""

from pathlib import Path

import numpy as np

from tests.evaluate.found import arm, evaluation, foresight
from vla_mot.commands.report import collect
from vla_mot.evaluate.results import Evaluation
from vla_mot.evaluate.video import write_video


def save(folder: Path, *arms, films: tuple[str, ...] = ()) -> None:
    Evaluation(arms).save(folder)
    for name in films:
        path = folder / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, [np.zeros((32, 32, 3), np.uint8)] * 2, fps=10)


def films(folder: Path) -> dict[str, str]:
    return {text: str(path.relative_to(folder)) for text, path in collect(folder).films.items()}


def test_a_film_is_captioned_with_the_arm_that_acts_in_it(tmp_path):
    save(tmp_path / "experts", arm("expert", 2, 2, "scripted expert"), films=("7.mp4", "8.mp4"))
    assert films(tmp_path) == {
        "scripted expert, episode 7": "experts/videos/7.mp4",
        "scripted expert, episode 8": "experts/videos/8.mp4",
    }


def test_the_policys_films_are_preferred_whichever_folder_is_first(tmp_path):
    save(tmp_path / "a", arm("expert", 2, 2, "scripted expert"), films=("7.mp4",))
    save(tmp_path / "b", arm("policy", 1, 2, "trained policy"), films=("7.mp4",))
    assert films(tmp_path) == {"trained policy, episode 7": "b/videos/7.mp4"}


def test_several_arms_of_one_evaluation_keep_their_films_apart(tmp_path):
    arms = (arm("policy", 1, 2, "trained policy"), arm("expert", 2, 2, "scripted expert"))
    save(tmp_path, *arms, films=("expert/7.mp4", "policy/7.mp4", "policy/8.mp4"))
    assert films(tmp_path) == {
        "trained policy, episode 7": "videos/policy/7.mp4",
        "trained policy, episode 8": "videos/policy/8.mp4",
    }


def test_arms_of_one_name_are_told_apart_by_their_folder(tmp_path):
    save(tmp_path / "a", arm("policy", 1, 2, "trained policy"))
    save(tmp_path / "b", arm("policy", 2, 2, "trained policy"), films=("7.mp4",))
    found = collect(tmp_path)
    assert [a.label for a in found.evaluation.arms] == ["trained policy", "trained policy (b)"]
    assert list(found.films) == ["trained policy (b), episode 7"]


def test_how_it_was_made_is_told_by_folder_where_folders_differ(tmp_path):
    told = {
        "a": {"torch": "2.11", "checkpoint": "one"},
        "b": {"torch": "2.11", "checkpoint": "two", "robot": "x"},
    }
    for name, facts in told.items():
        Evaluation((arm("policy", 1, 2),), foresight() if name == "b" else None, facts).save(tmp_path / name)
    found = collect(tmp_path).evaluation
    assert found.provenance == {
        "torch": "2.11", "a: checkpoint": "one", "b: checkpoint": "two", "b: robot": "x", "foresight": "b",
    }  # fmt: skip
    assert found.foresight is not None
    foresight().save(tmp_path / "a")
    assert collect(tmp_path).evaluation.provenance["foresight"] == "a (not shown: b)"


def test_one_evaluation_tells_how_it_was_made_as_it_is(tmp_path):
    evaluation().save(tmp_path / "a")
    assert collect(tmp_path).evaluation.provenance == evaluation().provenance


def test_without_an_evaluation_there_is_nothing_to_collect(tmp_path):
    assert collect(tmp_path) is None

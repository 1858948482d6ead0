"""`vla-mot evaluate open_loop`: through the command, on recordings of the conveyor's robots and of a person's hand."""

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.infer.tiny_policy import known_robot, tiny_policy
from vla_mot.commands.folders import find_policy
from vla_mot.commands.recordings import find_roots
from vla_mot.data.source import Source
from vla_mot.data.split import split_episodes
from vla_mot.infer.policy import Policy
from vla_mot.robots.images import resize_with_pad


@pytest.fixture(scope="module")
def two_robots(tmp_path_factory) -> Path:
    """A policy with random weights that knows two of the conveyor's robots."""
    policy = tiny_policy()
    robots = tuple(known_robot(name, 4) for name in ("conveyor", "conveyor_fingers"))
    folder = tmp_path_factory.mktemp("two") / "policy"
    Policy(policy.model, replace(policy.spec, robots=robots)).save_pretrained(folder)
    return folder


def test_datasets_are_found_once_each(three_datasets):
    one, film = three_datasets / "conveyor", three_datasets / "conveyor_video"
    assert find_roots([one]) == {"conveyor": one}
    assert list(find_roots([three_datasets])) == ["conveyor", "conveyor_fingers", "conveyor_video"]
    assert find_roots([film, three_datasets, one]) == {
        "conveyor_video": film,
        "conveyor": one,
        "conveyor_fingers": three_datasets / "conveyor_fingers",
    }


def test_datasets_of_one_name_are_told_apart(three_datasets, tmp_path):
    (tmp_path / "conveyor" / "meta").mkdir(parents=True)
    (tmp_path / "conveyor" / "meta" / "info.json").write_text("{}")
    one, other = three_datasets / "conveyor", tmp_path / "conveyor"
    assert find_roots([one, other]) == {"conveyor": one, str(other): other}


def results(folder: Path) -> dict:
    return json.loads((folder / "open_loop.json").read_text())


def by_hand(root: Path, policy: Policy, episode: int) -> tuple[np.ndarray, np.ndarray]:
    """Chunk minus recording at one moment after the other, `(steps, D)`; and the step of each in its chunk."""
    source, model = Source.open(root, policy.robot.embodiment), policy.spec.model
    start, end = source.bounds[episode].tolist()
    views = {camera: source.decode(episode, camera) for camera in source.cameras}
    off, steps = [], []
    for t in range(0, end - start, model.chunk_size):
        pair = [max(t - model.offset_frames, 0), t]
        images = {key: resize_with_pad(view[pair], *model.view_size)[None] for key, view in views.items()}
        noise = policy.noise([start + t], 0)
        chunk = policy.predict(images, source.state[[start + t]], [source.task(start + t)], noise).actions[0]
        recorded = source.action[start + t : min(start + t + model.chunk_size, end)]
        off.append((chunk[: len(recorded)] - recorded).numpy())
        steps += range(len(recorded))
    return np.concatenate(off).astype(np.float64), np.array(steps)


def test_a_policy_beside_a_recording(vla_mot, trained, dataset, tmp_path):
    output = tmp_path / "out"
    words = (f"checkpoint={trained}", f"dataset={dataset}", "episodes=2", "plots=1", "num_steps=2")
    said = vla_mot("evaluate", "open_loop", *words, f"output={output}")
    assert said.code == 0, said.err
    assert "copy of the last frame" in said.out
    policy = Policy.from_pretrained(find_policy(trained)).with_sampler(num_steps=2)
    parts = [by_hand(dataset, policy, episode) for episode in (0, 1)]
    off, steps = (np.concatenate(column) for column in zip(*parts, strict=True))
    found = results(output)["datasets"][0]
    assert (found["episodes"], found["dataset"], found["stride"]) == ([0, 1], "conveyor", 12)
    for place, (name, kind) in enumerate((("x", "joint"), ("y", "joint"), ("aperture", "gripper"))):
        told = found["actions"]["dimensions"][name]
        assert (told["unit"], told["kind"]) == ("m", kind)
        assert told["policy"]["mse"]["value"] == pytest.approx(np.square(off[:, place]).mean(), rel=1e-4)
        assert told["policy"]["mae"]["value"] == pytest.approx(np.abs(off[:, place]).mean(), rel=1e-4)
        assert told["policy"]["count"] == len(off)
    groups = found["actions"]["groups"]
    assert groups["all (m)"]["policy"]["mse"]["value"] == pytest.approx(np.square(off).mean(), rel=1e-4)
    assert groups["joints (m)"]["policy"]["mse"]["value"] == pytest.approx(
        np.square(off[:, :2]).mean(), rel=1e-4
    )
    with (output / "errors.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["dimension"], row["method"]) == ("y", "policy")]
    for row in rows:
        mine = off[steps == int(row["step"]), 1]
        assert (float(row["mse"]), int(row["count"])) == (
            pytest.approx(np.square(mine).mean(), rel=1e-4),
            len(mine),
        )
    assert len(rows) == 12
    assert sorted(path.name for path in output.rglob("*.png")) == [
        "conveyor-000000.png",
        "conveyor-horizon.png",
    ]
    assert (output / "open_loop.html").stat().st_size > 10_000


def test_results_do_not_depend_on_how_they_are_computed(vla_mot, two_robots, three_datasets, tmp_path):
    words = ("evaluate", "open_loop", f"checkpoint={two_robots}", f"dataset={three_datasets / 'conveyor'}",
             "episodes=1", "plots=0")  # fmt: skip
    changes = {
        "one": ("batch_size=1",),
        "static": ("engine=static",),
        "actions": ("pictures=false",),
        "other": ("seed=1",),
    }
    found = {}
    for name, change in ({"plain": ()} | changes).items():
        said = vla_mot(*words, *change, f"output={tmp_path / name}")
        assert said.code == 0, said.err
        found[name] = results(tmp_path / name)["datasets"][0]
    whole = {
        name: one["actions"]["groups"]["all (m)"]["policy"]["mse"]["value"] for name, one in found.items()
    }
    for name in ("one", "static", "actions"):
        assert whole[name] == pytest.approx(whole["plain"], rel=1e-4), name
    assert whole["other"] != pytest.approx(whole["plain"], rel=1e-4)
    psnr = {
        name: found[name]["foresight"]["head"]["foresight"]["psnr"]["value"] for name in ("plain", "static")
    }
    assert psnr["static"] == pytest.approx(psnr["plain"], abs=1e-3)
    assert found["actions"]["foresight"] is None


def test_several_robots_and_people_in_one_call(vla_mot, two_robots, three_datasets, tmp_path):
    output = tmp_path / "out"
    said = vla_mot(
        "evaluate", "open_loop", f"checkpoint={two_robots}", f"dataset={three_datasets}", f"output={output}",
        "episodes=2", "stride=20", "plots=1", "rerun=true",
    )  # fmt: skip
    assert said.code == 0, said.err
    found = results(output)
    assert list(found["embodiments"]) == ["conveyor", "conveyor_fingers", "conveyor_video"]
    fingers = found["embodiments"]["conveyor_fingers"]["actions"]
    assert list(fingers["dimensions"]) == ["x", "y", "left", "right"]
    people = found["embodiments"]["conveyor_video"]
    assert people["actions"] is None
    assert people["foresight"]["head"]["pictures"] > 0
    assert "conveyor_video: no actions are recorded" in said.out
    assert (output / "open_loop.rrd").stat().st_size > 10_000
    lengths = {name: Source.open(three_datasets / name, known_robot(name, 4).embodiment).bounds[:2].diff()[:, 0]
               for name in ("conveyor", "conveyor_fingers")}  # fmt: skip
    for name, length in lengths.items():
        assert found["embodiments"][name]["actions"]["chunks"] == int((-(-length // 20)).sum())


def test_only_what_the_run_held_out(vla_mot, trained, dataset, two_robots, tmp_path):
    words = ("evaluate", "open_loop", f"dataset={dataset}", "held_out=true", "pictures=false", "num_steps=1")
    said = vla_mot(*words, f"checkpoint={trained}", f"output={tmp_path / 'out'}")
    assert said.code == 0, said.err
    config = yaml.safe_load((trained / "config.yaml").read_text())["data"]
    held_out = split_episodes(5, config["validation_fraction"], config["split_seed"])[1]
    found = results(tmp_path / "out")
    assert found["datasets"][0]["episodes"] == list(held_out)
    assert "of those that the run held out" in found["provenance"]["episodes"]
    said = vla_mot(*words, f"checkpoint={two_robots}", f"output={tmp_path / 'other'}")
    assert (said.code, "lies in no run" in said.err) == (2, True)
    assert not (tmp_path / "other").exists()


def test_a_dataset_of_which_nothing_was_held_out_is_left_out(vla_mot, trained, dataset, tmp_path):
    lone = shutil.copytree(dataset, tmp_path / "lone")
    told = json.loads((dataset / "meta" / "info.json").read_text()) | {"total_episodes": 1}
    (lone / "meta" / "info.json").write_text(json.dumps(told))
    words = (
        "evaluate",
        "open_loop",
        f"checkpoint={trained}",
        "held_out=true",
        "pictures=false",
        "num_steps=1",
    )
    said = vla_mot(*words, f"dataset=[{lone},{dataset}]", f"output={tmp_path / 'out'}")
    assert (said.code, "lone is left out" in said.out) == (0, True), said.err
    assert [one["dataset"] for one in results(tmp_path / "out")["datasets"]] == [dataset.name]
    said = vla_mot(*words, f"dataset={lone}", f"output={tmp_path / 'none'}")
    assert (said.code, "held out no episode of these" in said.err) == (2, True)
    assert not (tmp_path / "none").exists()


def retold(root: Path, folder: Path, robot_type: str) -> Path:
    """The same dataset, which says that it is another robot's."""
    shutil.copytree(root, folder)
    info = folder / "meta" / "info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"robot_type": robot_type}))
    return folder


def test_which_robot_a_dataset_is_read_as(vla_mot, two_robots, three_datasets, tmp_path):
    words = ("evaluate", "open_loop", f"checkpoint={two_robots}", "episodes=1", "stride=40", "plots=0")
    mine = retold(three_datasets / "conveyor_fingers", tmp_path / "mine", "mystery")
    film = retold(three_datasets / "conveyor_video", tmp_path / "film", "somebody")
    said = vla_mot(*words, f"dataset=[{mine},{film}]", f"output={tmp_path / 'out'}")
    assert said.code == 0, said.err
    told = {one["dataset"]: one["embodiment"] for one in results(tmp_path / "out")["datasets"]}
    assert told == {"mine": "conveyor_fingers", "film": "somebody"}
    aloha = retold(three_datasets / "conveyor", tmp_path / "aloha", "aloha")
    said = vla_mot(*words, f"dataset={aloha}", f"output={tmp_path / 'other'}")
    assert said.code == 2
    assert (
        "recorded by robot type 'aloha', which the checkpoint does not know (it knows conveyor, " in said.err
    )
    said = vla_mot(*words, f"dataset={aloha}", "robot=conveyor", f"output={tmp_path / 'other'}")
    assert said.code == 0, said.err
    assert list(results(tmp_path / "other")["embodiments"]) == ["conveyor"]
    said = vla_mot(*words, f"dataset={aloha}", "robot=conveyor_fingers", f"output={tmp_path / 'third'}")
    assert (said.code, "no camera 'observation.images.overhead'" in said.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("dataset=nowhere",), "dataset folder nowhere does not exist"),
        (("dataset=.",), "is not a LeRobot dataset"),
        (("robot=conveyer",), "knows no robot with embodiment 'conveyer'"),
        (("episodes=0",), "episodes must be at least 1"),
        (("stride=0",), "stride must be at least 1"),
        (("plots=-1",), "plots must be at least 0"),
        (("num_steps=0",), "sampler.num_steps must lie in 1"),
        (("solver=oiler",), "Did you mean 'euler'?"),
        (("device=cdua",), "torch finds no such device here"),
        (("engine=static", "engine.understanding_every=2"), "understanding_every is for control steps"),
        (("embodiments=[mine.yaml]",), "leave out embodiments"),
        (("checkpoint=nowhere",), "checkpoint nowhere does not exist"),
        (("epsiodes=1",), "Did you mean 'episodes'?"),
    ],
)
def test_bad_input(vla_mot, two_robots, three_datasets, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    given = {"checkpoint": two_robots, "dataset": three_datasets / "conveyor", "output": tmp_path / "out"}
    given |= dict(word.split("=", 1) for word in words)
    said = vla_mot("evaluate", "open_loop", *(f"{key}={value}" for key, value in given.items()))
    assert said.code == 2
    assert message in " ".join(said.err.split())
    assert not (tmp_path / "out").exists()


def test_a_missing_rerun_is_said_before_anything_is_opened(vla_mot, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    words = ("checkpoint=nowhere", "dataset=nowhere", f"output={tmp_path / 'out'}", "rerun=true")
    said = vla_mot("evaluate", "open_loop", *words)
    assert (said.code, "pip install 'vla-mot[rerun]'" in said.err) == (2, True)


def test_pictures_that_cannot_be_decoded_are_named_and_leave_nothing(
    vla_mot, two_robots, three_datasets, tmp_path
):
    broken = tmp_path / "broken"
    shutil.copytree(three_datasets / "conveyor", broken)
    video = next(broken.rglob("*.mp4"))
    video.write_bytes(video.read_bytes()[:200])
    words = (f"checkpoint={two_robots}", f"dataset={broken}", f"output={tmp_path / 'out'}")
    said = vla_mot("evaluate", "open_loop", *words)
    assert said.code == 2
    assert video.name in said.err and "cannot be decoded" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_the_words_of_the_command(vla_mot, tmp_path):
    assert "checkpoint must be given: write checkpoint=…" in vla_mot("evaluate", "open_loop").err
    assert (
        "checkpoint must be given for controller=policy"
        in vla_mot("evaluate", f"output={tmp_path / 'a'}").err
    )
    assert "Did you mean 'evaluate open_loop'?" in vla_mot("evaluate", "open_lop").err
    assert "vla-mot evaluate [key=value …]" in vla_mot("evaluate", "--help").out

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.infer.tiny_policy import known_robot
from tests.interrupting import interrupt_when, vla_mot_process
from vla_mot.commands import foresight
from vla_mot.commands.arms import DEMO_ARMS, ArmSpec, delay_steps, untrained
from vla_mot.commands.folders import find_policy, run_of
from vla_mot.data.windows import WindowDataset
from vla_mot.errors import DatasetError
from vla_mot.evaluate.results import Evaluation
from vla_mot.infer.engine import EngineConfig
from vla_mot.infer.policy import Policy


def test_a_policy_in_closed_loop(vla_mot, trained, dataset, frames, tmp_path):
    output = tmp_path / "evaluation"
    said = vla_mot(
        "evaluate", f"checkpoint={trained}", f"output={output}", "episodes=3", "parallel=2", "videos=1",
        "env.max_steps=15", f"dataset={dataset}", f"cache={frames}", "foresight_samples=24",
    )  # fmt: skip
    assert said.code == 0
    assert "95 % interval" in said.out
    assert "copy of the last frame" in said.out
    evaluation = Evaluation.load(output)
    assert [episode.seed for episode in evaluation.arms[0].episodes] == [100000, 100001, 100002]
    assert evaluation.foresight is not None
    assert evaluation.foresight.episodes == 1, "only the held-out episode is scored"
    assert [path.name for path in (output / "videos").iterdir()] == ["100000.mp4"]
    assert json.loads((output / "results.json").read_text())["arms"][0]["name"] == "policy"
    assert vla_mot("report", f"run={tmp_path}").code == 0
    page = (tmp_path / "report.html").read_text()
    shown = (
        "Trained policy: success in 3 episodes",
        "trained policy, episode 100000",
        "Copy of the last frame",
    )
    assert all(part in page for part in shown)
    assert page.count("data:video/mp4") == 1


def test_results_do_not_depend_on_what_runs_beside_them(vla_mot, trained, tmp_path):
    common = ("evaluate", f"checkpoint={trained}", "episodes=2", "videos=0", "env.max_steps=12")
    assert vla_mot(*common, f"output={tmp_path / 'a'}", "parallel=2").code == 0
    assert vla_mot(*common, f"output={tmp_path / 'b'}", "parallel=1").code == 0
    a, b = (Evaluation.load(tmp_path / name).arms[0].episodes for name in "ab")
    assert [(e.seed, e.verdict, e.steps, e.task) for e in a] == [
        (e.seed, e.verdict, e.steps, e.task) for e in b
    ]


def test_the_expert_needs_no_checkpoint(vla_mot, tmp_path):
    said = vla_mot("evaluate", "controller=expert", f"output={tmp_path / 'out'}", "episodes=2", "videos=0")
    assert said.code == 0
    assert "2/2" in said.out


def test_the_other_instruction_is_given(vla_mot, trained, tmp_path):
    output = tmp_path / "out"
    said = vla_mot(
        "evaluate", f"checkpoint={trained}", f"output={output}", "episodes=2", "videos=0", "env.max_steps=3",
        "instruction=other", "history=present", "num_steps=2", "n_action_steps=3", "remember_latents=true",
        "engine=static", "engine.understanding_every=2", "parallel=1",
    )  # fmt: skip
    assert said.code == 0
    (arm,) = Evaluation.load(output).arms
    assert Evaluation.load(output).provenance["engine"] == "static, understanding_every=2"
    assert arm.name == "no_history-other_instruction"
    assert all(episode.task != episode.instruction for episode in arm.episodes)


def test_latency_and_what_is_done_about_it(vla_mot, trained, tmp_path):
    common = ("evaluate", f"checkpoint={trained}", "episodes=2", "videos=0", "env.max_steps=6")
    names = {"naive": "policy-150ms", "ensemble": "policy-ensemble-150ms", "rtc": "policy-rtc-150ms"}
    for chunks, name in names.items():
        output = tmp_path / chunks
        said = vla_mot(*common, f"output={output}", f"chunks={chunks}", "delay_ms=150", "rtc.max_guidance=8")
        assert (said.code, "150 ms late" in said.out) == (0, True), said.err
        evaluation = Evaluation.load(output)
        assert evaluation.arms[0].name == name
        assert evaluation.provenance["chunks"] == f"{chunks}, 150 ms late"
    for words, message in (
        (("chunks=rtcc",), "Did you mean 'rtc'"),
        (("engine=statik",), "Did you mean 'static'"),
        (("engine=static", "engine.understanding_every=0"), "engine.understanding_every must be at least 1"),
        (("engine=static", "engine.understanding_every=2", "parallel=2"), "Set parallel=1"),
        (("engine=static", "engine.understanding_ahead=true", "parallel=2"), "Set parallel=1"),
        (("delay_ms=-1",), "delay_ms must lie in 0"),
        (("rtc.mode=frosen", "chunks=rtc"), "Did you mean 'frozen'"),
        (("controller=expert", "delay_ms=100"), "the scripted expert is never late"),
    ):
        said = vla_mot(*common, f"output={tmp_path / 'other'}", *words)
        assert (said.code, message in " ".join(said.err.split())) == (2, True), said.err


@pytest.mark.parametrize(
    ("milliseconds", "steps"), [(1, 1), (100, 1), (101, 2), (200, 2), (300, 3), (400, 4)]
)
def test_a_step_that_latency_begins_counts_whole(milliseconds, steps):
    assert delay_steps(milliseconds, {"name": "conveyor"}) == steps  # at 10 Hz


def test_the_demo_compares_five_arms():
    names = ["policy", "no_history", "other_instruction", "untrained", "expert"]
    assert [arm.name for arm in DEMO_ARMS] == names
    assert ArmSpec("untrained", history="present").name == "untrained-no_history"


def test_untrained_means_other_weights_but_the_same_tokenizer(trained):
    policy = Policy.from_pretrained(find_policy(trained))
    fresh = untrained(policy)
    assert not policy.model.action.out_proj.weight.equal(fresh.model.action.out_proj.weight)
    assert policy.model.tokenizer.latent_std.equal(fresh.model.tokenizer.latent_std)
    assert fresh.engine is None
    static = untrained(policy.compile("static", understanding_every=2))
    assert static.engine.config == EngineConfig("static", understanding_every=2)
    assert static.engine.model is static.model


@pytest.mark.parametrize("place", ["", "checkpoints/last", "checkpoints/last/pretrained_model"])
def test_info(vla_mot, trained, place):
    said = vla_mot("info", f"checkpoint={trained / place}")
    assert said.code == 0
    for part in (
        "conveyor/delta: rate",
        "10 Hz",
        "observation.images.gripper",
        "12 steps = 1.2 s",
        "10 actions of a chunk executed",
        "6 frames = 0.6 s",
    ):
        assert part in said.out


def test_a_dataset_that_is_missing_is_noticed_before_any_episode_is_driven(vla_mot, trained, tmp_path):
    output = tmp_path / "out"
    common = ("evaluate", f"checkpoint={trained}", f"output={output}", "episodes=1", "env.max_steps=3")
    said = vla_mot(*common, f"dataset={tmp_path / 'nowhere'}")
    assert (said.code, "nowhere" in said.err) == (2, True)
    assert "episodes from seed" not in said.out
    assert list(tmp_path.iterdir()) == []
    assert vla_mot(*common).code == 0, "the folder counted as used"


@pytest.mark.parametrize(
    "step", ["commands.foresight.score", "evaluate.foresight_report.ForesightReport.save"]
)
def test_results_are_kept_when_the_foresight_cannot_be_scored_or_saved(
    vla_mot, trained, dataset, frames, tmp_path, monkeypatch, step
):
    def torn(*given):
        raise RuntimeError("torn picture")

    monkeypatch.setattr(f"vla_mot.{step}", torn)
    output = tmp_path / "out"
    said = vla_mot(
        "evaluate", f"checkpoint={trained}", f"output={output}", "episodes=2", "env.max_steps=3", "videos=0",
        f"dataset={dataset}", f"cache={frames}", "foresight_samples=24",
    )  # fmt: skip
    assert said.code == 1
    assert f"The results of the episodes are kept in {output}" in said.err
    assert len(Evaluation.load(output).arms[0].episodes) == 2


@pytest.mark.parametrize("config", [None, "data: {}\n", "data: 3\n", "{}\n"])
def test_a_policy_outside_a_run_is_scored_on_every_episode(
    vla_mot, trained, dataset, frames, tmp_path, config
):
    """Also where the folders above it look like a run's, or there is nothing above it."""
    place = tmp_path / "policy" if config is None else tmp_path / "checkpoints" / "7" / "pretrained_model"
    shutil.copytree(find_policy(trained), place)
    if config is not None:
        (tmp_path / "config.yaml").write_text(config)
    said = vla_mot(
        "evaluate", f"checkpoint={place}", f"output={tmp_path / 'out'}", "episodes=1", "env.max_steps=2", "videos=0",
        f"dataset={dataset}", f"cache={frames}", "foresight_samples=8",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert "no episode is known to be held out" in said.out


@pytest.mark.parametrize(("fraction", "warned"), [(0.0, True), (0.4, False)])
def test_foresight_on_trained_episodes_is_called_so(
    vla_mot, trained, dataset, frames, tmp_path, fraction, warned
):
    """A run may hold out nothing, as mixtures do unless they are told to."""
    place = tmp_path / "run" / "checkpoints" / "7" / "pretrained_model"
    shutil.copytree(find_policy(trained), place)
    (tmp_path / "run" / "config.yaml").write_text(
        f"data: {{validation_fraction: {fraction}, split_seed: 0}}\n"
    )
    said = vla_mot(
        "evaluate", f"checkpoint={place}", f"output={tmp_path / 'out'}", "episodes=1", "env.max_steps=2", "videos=0",
        f"dataset={dataset}", f"cache={frames}", "foresight_samples=8",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert ("held out none" in said.out) == ("training may have seen" in said.out) == warned
    found = Evaluation.load(tmp_path / "out").foresight
    assert found is not None and found.trained_on == warned


class Torn(WindowDataset):
    """As a film that turns out to be damaged."""

    def __getitems__(self, indices):
        raise DatasetError("episode 3 cannot be decoded")


def test_only_a_dataset_on_which_nothing_can_be_foreseen_is_passed_over(trained, dataset, frames, capsys):
    data = foresight.ForesightData(dataset, samples=8, cache=frames, validation_fraction=0.2)
    opened = foresight.open_data(Policy.from_pretrained(find_policy(trained)), data)
    assert foresight.score(opened) is not None
    seen = opened.training
    beyond = replace(seen.config, offset_frames=1000)
    short = replace(opened, training=WindowDataset(seen.source, seen.pictures, beyond))
    assert foresight.score(short) is None
    assert "foresight is not scored: no real future frame" in capsys.readouterr().out
    with pytest.raises(DatasetError, match="episode 3 cannot be decoded"):
        foresight.score(replace(opened, scored=Torn(seen.source, seen.pictures, seen.config, [3])))


def test_a_policy_at_the_root_lies_in_no_run():
    assert run_of(Path("/policy")) is None
    assert run_of(Path("/pretrained_model")) is None


@pytest.mark.multiprocess
@pytest.mark.parametrize("words", [("evaluate", "controller=expert", "videos=100"), ("data", "record")])
def test_ctrl_c_leaves_nothing_and_the_same_command_starts_again(vla_mot, tmp_path, words):
    output = tmp_path / "out"

    def something_written() -> bool:  # a film, or a part of the dataset
        return any(path.is_file() for path in tmp_path.rglob("*"))

    with vla_mot_process(*words, f"output={output}", "episodes=5000") as process:
        err = interrupt_when(process, something_written)
    assert process.returncode == 130, err
    assert f"interrupted. Nothing was written to {output}; the same command starts again." in err
    assert list(tmp_path.iterdir()) == []
    assert vla_mot(*words, f"output={output}", "episodes=1").code == 0


@pytest.fixture(scope="module")
def two_robots(trained, tmp_path_factory) -> Path:
    """The trained policy with a second robot, of which it has seen nothing."""
    policy = Policy.from_pretrained(find_policy(trained))
    fingers = known_robot("conveyor_fingers", policy.spec.model.chunk_size)
    robots = (*policy.spec.robots, fingers)
    place = tmp_path_factory.mktemp("policies") / "two_robots"
    Policy(policy.model, replace(policy.spec, robots=robots)).save_pretrained(place)
    return place


def test_a_policy_of_several_robots_drives_the_one_that_is_named(vla_mot, two_robots, tmp_path):
    common = ("evaluate", f"checkpoint={two_robots}", "episodes=2", "env.max_steps=12", "videos=1")
    output = tmp_path / "out"
    said = vla_mot(*common, f"output={output}", "robot=conveyor_fingers", "env.robot=fingers")
    assert said.code == 0, said.err
    evaluation = Evaluation.load(output)
    assert [episode.steps for episode in evaluation.arms[0].episodes] == [12, 12]
    assert evaluation.provenance["robot"] == "conveyor_fingers"
    for words, message in (
        ((), "conveyor_fingers/delta): write robot=…"),
        (
            ("robot=conveyor_finger", "env.robot=fingers"),
            "knows no robot with embodiment 'conveyor_finger'",
        ),
        (("robot=conveyor_fingers",), "the environment of shape (3,): it is another robot's"),
    ):
        said = vla_mot(*common, f"output={tmp_path / 'other'}", *words)
        assert (said.code, message in " ".join(said.err.split())) == (2, True), said.err
        assert "episodes from seed" not in said.out
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_untrained_policy_and_the_expert_drive_the_second_robot(vla_mot, two_robots, tmp_path):
    common = ("evaluate", f"checkpoint={two_robots}", "episodes=2", "videos=0", "env.robot=fingers")
    said = vla_mot(*common, "controller=expert", f"output={tmp_path / 'expert'}")
    assert (said.code, "2/2" in said.out) == (0, True), said.err
    said = vla_mot(
        *common, "controller=untrained", "robot=conveyor_fingers", f"output={tmp_path / 'untrained'}"
    )
    assert (said.code, "0/2" in said.out) == (0, True), said.err


def test_a_robot_is_named_of_a_checkpoint_only(vla_mot, tmp_path):
    said = vla_mot("evaluate", "controller=expert", "robot=conveyor_fingers", f"output={tmp_path / 'out'}")
    assert (said.code, "write checkpoint=…" in said.err) == (2, True)

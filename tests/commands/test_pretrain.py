"""`vla-mot pretrain` on two robots and videos without actions, then `posttrain` from it; stopped, killed, resumed."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from tests.data.test_loader import children
from tests.train.runs import logged, saved_state
from tests.waiting import once, steps_done
from vla_mot.commands.main import main
from vla_mot.conf_dir import conf_dir
from vla_mot.train.log import read_log

SMALL = (
    "train.steps=6",
    "train.batch_size=8",
    "train.warmup_steps=1",
    "train.log_every=1",
    "train.val_every=3",
    "train.save_every=3",
    "train.val_samples=8",
    "train.val_open_loop=2",
    "train.val_pictures=1",
    "train.action_draws=1",
)


@pytest.fixture(scope="module")
def pretraining(three_datasets, tmp_path_factory) -> tuple[str, ...]:
    """The arguments of a very short run, but for its output."""
    frames = tmp_path_factory.mktemp("frames")
    data = (f"data.root={three_datasets}", f"data.cache={frames}", "data.shards=2")
    return ("pretrain", "experiment=pretrain_tiny", *SMALL, *data)


@pytest.fixture(scope="module")
def pretrained(pretraining, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    assert main([*pretraining, f"output={folder}"]) == 0
    return folder


def weights(run):
    return saved_state(run / "checkpoints" / "last")


def test_batches_are_made_of_what_was_asked_for(pretrained):
    last = [record for record in logged(pretrained) if record["kind"] == "train"][-1]
    kinds = {name: last[f"samples/{name}"] for name in ("planar", "fingers", "people")}
    assert sum(kinds.values()) == 48 and min(kinds.values()) > 0
    assert last["samples/with actions"] == kinds["planar"] + kinds["fingers"]
    assert 0 < last["samples/with foresight"] < 48


def test_what_is_reached_of_the_machines_rate_is_told(pretrained):
    told = [record for record in read_log(pretrained) if record["kind"] == "train"][-1]
    assert 0 < told["machine/utilisation"] < 1.5


def test_the_checkpoint_knows_its_robots_and_its_mixture(pretrained, vla_mot):
    policy = pretrained / "checkpoints" / "last" / "pretrained_model"
    known = json.loads((policy / "stats.json").read_text())
    assert set(known) == {"conveyor", "conveyor_fingers"}, "nobody drives a person"
    assert vla_mot("verify", f"checkpoint={policy}").code == 0
    manifest = json.loads((policy / "training.json").read_text())["mixture"]
    assert [row["dataset"] for row in manifest] == ["conveyor", "conveyor_fingers", "conveyor_video"]
    assert sum(row["weight"] for row in manifest) == pytest.approx(1)
    assert all(len(row["revision"]) == 32 and row["frames"] for row in manifest)


@pytest.mark.multiprocess
def test_data_workers_change_nothing_and_a_resumed_run_may_have_others(
    pretrained, pretraining, vla_mot, tmp_path
):
    run = tmp_path / "run"
    said = vla_mot(*pretraining, f"output={run}", "data.workers=2", "train.steps=3")
    assert "data       3 datasets of conveyor/delta, conveyor_fingers/delta" in said.out
    assert "20.0% people: conveyor_video, without actions: foresight only" in said.out
    assert "history and foresight  6 frames = 0.6 s at 10 fps; chunk 12 steps = 1.2 s" in said.out
    assert vla_mot("pretrain", f"resume={run}", "train.steps=6", "data.workers=1").code == 0
    assert logged(run)[-1] == logged(pretrained)[-1]
    mine, theirs = weights(run), weights(pretrained)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


def test_workers_that_cannot_share_the_shards_of_a_run_are_refused(pretrained, vla_mot):
    said = vla_mot("pretrain", f"resume={pretrained}", "train.steps=9", "data.workers=3")
    assert said.code == 2
    assert "data.shards=2 cannot be shared evenly by 3 workers" in said.err


def test_a_key_of_the_run_s_own_presets_needs_no_preset_to_be_compared(pretrained, vla_mot, tmp_path):
    """Those are not given again when a run is resumed, and a plain `posttrain` has none of these keys."""
    said = vla_mot("posttrain", f"resume={pretrained}", "data.groups.people.weight=9")
    assert said.code == 2
    assert "data.groups.people.weight is 0.2 there, 9 was asked" in said.err, said.err
    said = vla_mot("posttrain", f"resume={pretrained}", "data.embodiments=[]", "data.groups.persons.weight=9")
    assert (said.code, "unknown key 'data.groups.persons.weight'" in said.err) == (2, True), said.err


def test_braces_that_add_to_a_preset_are_told_how(vla_mot):
    said = vla_mot("pretrain", "data=conveyors", "data.groups={arms: {pattern: arms}}")
    assert said.code == 2
    assert "unknown key 'data.groups.arms'" in said.err and "Known: data.groups.fingers, " in said.err
    assert "'+data.groups.arms=…' adds to it, ~data.groups.<name> takes away" in said.err
    said = vla_mot("pretrain", "train.experts.action.adapter.rank=4")
    assert "give it whole, 'train.experts.action.adapter={rank: …}'" in said.err, said.err


def test_another_order_is_another_run(pretrained, vla_mot):
    said = vla_mot("pretrain", f"resume={pretrained}", "data.assignment=lpt")
    assert said.code == 2
    assert "data.assignment is 'exact' there, 'lpt' was asked" in said.err and "init_from" in said.err


def test_posttraining_starts_from_it(pretrained, vla_mot, three_datasets, tmp_path):
    data = (f"data.root={three_datasets / 'conveyor'}", f"data.cache={tmp_path / 'frames'}")
    output = f"output={tmp_path / 'run'}"
    said = vla_mot("posttrain", "experiment=conveyor", *SMALL, *data, output, f"init_from={pretrained}")
    assert said.code == 0, said.err
    assert logged(tmp_path / "run")[0]["foresight_loss"] < logged(pretrained)[0]["foresight_loss"]


def test_videos_alone_train_foresight(pretraining, vla_mot, tmp_path):
    said = vla_mot(*pretraining, f"output={tmp_path / 'run'}", "~data.groups.planar", "~data.groups.fingers")
    assert said.code == 0, said.err
    records = logged(tmp_path / "run")
    assert all(record["action_loss"] == 0 and record["foresight_loss"] > 0 for record in records)
    assert vla_mot("verify", f"checkpoint={tmp_path / 'run'}").code == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("train.foresight_weight=0",), "train.foresight_weight is 0"),
        (("model.generation=null", "foresight=none"), "the model has no generation expert"),
    ],
)
def test_videos_that_teach_nothing_are_refused(pretraining, vla_mot, tmp_path, words, why):
    said = vla_mot(*pretraining, *words, f"output={tmp_path / 'run'}")
    assert said.code == 2
    assert "nothing can be learned from conveyor_video:" in said.err and why in said.err
    assert "~data.groups.<name>" in said.err


@pytest.mark.multiprocess
def test_a_killed_data_worker_leaves_a_run_that_goes_on(pretraining, vla_mot, tmp_path):
    run = tmp_path / "run"
    rare = ("train.steps=1000", "train.save_every=5000", "train.val_every=5000")

    def kill_the_worker() -> None:
        (victim,) = children()
        os.kill(victim, signal.SIGKILL)

    with once(lambda: steps_done(run) >= 3, kill_the_worker):
        said = vla_mot(*pretraining, *rare, f"output={run}", "data.workers=1")
    assert said.code == 1, said.err
    assert "a data worker died" in said.err and f"vla-mot pretrain resume={run}" in said.err
    assert "Traceback" not in said.err
    reached = read_log(run)[-1]["step"]
    goal = (f"train.steps={reached + 2}", "data.workers=0")
    assert vla_mot("pretrain", f"resume={run}", *goal).code == 0
    steps = [record["step"] for record in read_log(run) if record["kind"] == "train"]
    assert steps == list(range(1, reached + 3))


def test_cached_latents_train_the_same(pretrained, pretraining, vla_mot, tmp_path):
    run = tmp_path / "run"
    cached = ("data.latents=float32", f"data.cache={tmp_path / 'frames'}")
    assert vla_mot(*pretraining, *cached, f"output={run}", "train.steps=3").code == 0
    assert vla_mot("pretrain", f"resume={run}", "train.steps=6").code == 0
    for mine, other in zip(logged(run), logged(pretrained), strict=True):
        assert mine.pop("kind") == other.pop("kind")
        assert mine == pytest.approx(other, rel=1e-4)
    said = vla_mot(*pretraining, *cached, f"output={tmp_path / 'b'}", "data.augmentation.hue=0.1")
    assert said.code == 2 and "turn one of them off" in said.err


def test_statistics_come_from_a_file(pretrained, pretraining, three_datasets, vla_mot, tmp_path):
    file, counted = (
        tmp_path / "stats.json",
        ("data", "stats", "data=conveyors", f"data.root={three_datasets}"),
    )
    for chunk, code in ((12, 0), (5, 2)):
        file.unlink(missing_ok=True)
        said = vla_mot(*counted, f"chunk_size={chunk}", f"output={file}", f"kept={tmp_path / 'kept'}")
        assert said.code == 0, said.err
        run = tmp_path / f"run{chunk}"
        said = vla_mot(*pretraining, f"data.statistics={file}", f"output={run}")
        assert said.code == code
    assert logged(tmp_path / "run12") == logged(pretrained)
    assert "chunk size 5" in said.err and "12 is wanted" in said.err


def test_other_statistics_or_another_robot_are_another_run(pretraining, three_datasets, vla_mot, tmp_path):
    file, run = tmp_path / "stats.json", tmp_path / "run"
    counted = ("data", "stats", "data=conveyors", f"data.root={three_datasets}", "chunk_size=12")
    assert vla_mot(*counted, f"output={file}", f"kept={tmp_path / 'kept'}").code == 0
    mine = tmp_path / "mine.yaml"
    mine.write_text((conf_dir() / "embodiment" / "conveyor.yaml").read_text())
    given = (f"data.statistics={file}", f"data.embodiments=[{mine}]", "train.steps=3")
    assert vla_mot(*pretraining, *given, f"output={run}").code == 0
    whole = file.read_text()
    numbers = json.loads(whole)
    numbers["conveyor"]["delta"]["action"]["std"][0] = 9.0
    file.write_text(json.dumps(numbers))
    said = vla_mot("pretrain", f"resume={run}", "train.steps=6")
    assert said.code == 2 and "other descriptions or statistics" in said.err
    file.write_text(whole)
    mine.write_text(mine.read_text().replace("delta: [true, true, false]", "delta: [true, false, false]"))
    assert vla_mot("pretrain", f"resume={run}", "train.steps=6").code == 2
    moved = tmp_path / "moved.yaml"
    moved.write_text((conf_dir() / "embodiment" / "conveyor.yaml").read_text())
    said = vla_mot("pretrain", f"resume={run}", "train.steps=6", f"data.embodiments=[{moved}]")
    assert said.code == 0, said.err


@pytest.mark.parametrize("frames", ["cache", "video"])
def test_a_new_run_skips_what_is_broken(pretraining, three_datasets, vla_mot, tmp_path, frames, caplog):
    root = tmp_path / "three"
    shutil.copytree(three_datasets, root)
    film = sorted((root / "conveyor" / "videos").rglob("*.mp4"))[0]
    film.write_bytes(film.read_bytes()[:300])
    for table in (root / "conveyor_fingers" / "data").rglob("*.parquet"):
        table.write_bytes(b"PAR1")
    places = (f"data.root={root}", f"data.cache={tmp_path / 'cache'}", f"data.frames={frames}")
    said = vla_mot(*pretraining, *places, f"output={tmp_path / 'strict'}")
    assert said.code == 2 and not (tmp_path / "strict").exists()
    said = vla_mot(*pretraining, *places, f"output={tmp_path / 'run'}", "data.skip_broken=9")
    assert said.code == 0, said.err
    last = [record for record in logged(tmp_path / "run") if record["kind"] == "train"][-1]
    assert last["samples/people"] + last["samples/planar"] == 48


def test_a_full_cache_is_no_fault_of_a_dataset(pretraining, vla_mot, tmp_path):
    """Latents that find no room end the run, however many broken places it may skip: no dataset is left out."""
    cache = tmp_path / "cache"
    places = (f"data.cache={cache}", "data.frames=video", "data.cache_limit_gib=0.000001")
    skipping = ("data.latents=float16", "data.skip_broken=9")
    said = vla_mot(*pretraining, *places, *skipping, f"output={tmp_path / 'run'}")
    assert said.code == 2
    assert "the latent cache of 'conveyor' needs" in said.err and f"{cache / 'latents'}" in said.err


def test_what_does_not_fit_is_found_before_anything_is_counted(pretraining, vla_mot, tmp_path):
    output = f"output={tmp_path / 'run'}"
    for words, told in {
        ("data.shards=6", "train.batch_size=8"): "do not divide each other",
        ("data.shards=2", "data.workers=3"): "cannot be shared evenly by 3 workers",
        ("model.max_action_dim=3",): "'conveyor_fingers' has 4 action dimensions, the model 3",
        ("foresight.offset_seconds=0",): "foresight.offset_seconds must be positive",
        ("train.keep_best=true", "data.validation_fraction=0"): "but data.validation_fraction is 0",
        ("foresight.offset_seconds=0.25",): "2.5 frames at 10 fps",
        ("data.latents=float16", "data.augmentation.crop=0.9"): "turn one of them off",
        ("train.parallel.micro_batch=3",): "micro_batch=3 does not divide the 8 samples",
    }.items():
        said = vla_mot(*pretraining, output, *words)
        assert said.code == 2 and told in said.err, (words, said.err)
        assert "count" not in said.out and not (tmp_path / "run").exists()


def test_statistics_of_another_delta_layout_are_refused(pretraining, three_datasets, vla_mot, tmp_path):
    file, mine = tmp_path / "stats.json", tmp_path / "mine.yaml"
    counted = ("data", "stats", "data=conveyors", f"data.root={three_datasets}", "chunk_size=12")
    assert vla_mot(*counted, f"output={file}", f"kept={tmp_path / 'kept'}").code == 0
    told = (conf_dir() / "embodiment" / "conveyor.yaml").read_text()
    mine.write_text(told.replace("delta: [true, true, false]", "delta: [true, false, false]"))
    given = (f"data.statistics={file}", f"data.embodiments=[{mine}]", f"output={tmp_path / 'run'}")
    said = vla_mot(*pretraining, *given)
    assert said.code == 2 and "dimensions relative" in said.err

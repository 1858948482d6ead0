import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from vla_mot.commands.hydra_app import spelled_out
from vla_mot.commands.manual import COMMANDS
from vla_mot.robots.catalog import load_embodiment

COMMAND = next(command for command in COMMANDS if command.name == "data inspect")


@pytest.fixture
def inspect(vla_mot):
    def run(*arguments):
        return vla_mot("data", "inspect", *arguments)

    return run


@pytest.fixture
def copied(dataset, tmp_path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "copied"))


def test_a_dataset_that_fits_is_told(inspect, dataset):
    said = inspect(dataset)
    assert said.code == 0, said.err
    text = " ".join(said.out.split())
    for part in (
        "LeRobot v3.0, robot type conveyor",
        "5 episodes,",
        "conveyor, as described",
        "4 and 3 dimensions, 2 of them delta",
        "m = 15 frames = 1.5 s;",
        "chunk 50 steps = 5 s; 5",
        "224×224, enlarged",
        "pick the red block",
    ):
        assert part in text
    assert re.search(r"action \[2\] +│ aperture +│ action 2 +│ aperture +│ m +│ absolute", said.out)
    assert "What does not fit" not in said.out
    assert inspect(f"root={dataset}").out == said.out


def test_it_is_told_as_it_would_be_learned(inspect, dataset):
    shown = {mode: inspect(dataset, f"action_mode={mode}").out for mode in ("delta", "abs")}
    assert re.search(r"action \[0\] +│ x +│ action 0 +│ x +│ m +│ delta", shown["delta"])
    assert re.search(r"action \[0\] +│ x +│ action 0 +│ x +│ m +│ absolute", shown["abs"])
    assert "3 dimensions, 0 of them delta" in " ".join(shown["abs"].split())


@pytest.mark.parametrize("name", ["with space", "with 'quote'", "with=sign", "(odd), {name}"])
def test_any_folder_can_be_named(inspect, dataset, tmp_path, name):
    (tmp_path / name).symlink_to(dataset)
    said = inspect(f"root='{tmp_path / name}'" if "=" in name else tmp_path / name)
    assert (said.code, said.err) == (0, "")


@pytest.mark.parametrize(
    ("word", "read"),
    [
        ("some/where", "root='some/where'"),
        ("it's", r"root='it\'s'"),
        ("root=x", "root=x"),
        ("embodiment=generic", "embodiment.name=generic"),
        ("embodiment.files=[a]", "embodiment.files=[a]"),
        ("+x", "+x"),
        ("~root", "~root"),
    ],
)
def test_words_are_spelled_out_for_hydra(word, read):
    assert spelled_out(COMMAND, word) == read


def test_other_commands_take_no_bare_words(vla_mot):
    said = vla_mot("report", "somewhere")
    assert (said.code, "'somewhere' is no key=value" in said.err) == (2, True)


def test_the_help_names_the_bare_word(inspect):
    assert "vla-mot data inspect <root> [key=value …]" in inspect("--help").out


def test_everything_that_does_not_fit_is_told_at_once(inspect, dataset):
    said = inspect(dataset, "embodiment=aloha", "model.num_views=2", "model.max_state_dim=8")
    assert said.code == 2
    for part in (
        "no camera 'observation.images.cam_high'",
        "state feature 'observation.state' has 4 dimensions",
        "14 state dimensions, the model has 8: set model.max_state_dim=14",
        "3 camera slots, the model has 2: set model.num_views=3",
    ):
        assert part in said.out
    assert "left_joint_0" in said.out, "the mapping is shown nevertheless"
    assert re.search(r"error: .* does not fit: 7 problem\(s\), listed above", said.err)


def test_a_distance_of_no_whole_frames_is_told(inspect, dataset):
    said = inspect(dataset, "foresight.offset_frames=null", "foresight.offset_seconds=0.55")
    assert (said.code, "0.55 s is 5.5 frames at 10 fps" in said.out) == (2, True)


def test_an_unknown_robot_is_inferred_saved_corrected_and_read(inspect, copied, tmp_path):
    path = copied / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"robot_type": "Belt Robot"}))
    said = inspect(copied)
    assert said.code == 2
    assert "unknown robot type 'Belt Robot'" in said.out
    assert "name: belt_robot" in said.out
    file = tmp_path / "robots" / "belt.yaml"
    said = inspect(copied, "embodiment=generic", f"save_embodiment={file}")
    assert (said.code, f"embodiment: {file}" in said.out) == (0, True)
    assert load_embodiment(file).delta_mask == (True, True, False)
    corrected = yaml.safe_load(file.read_text())
    corrected["state"][0]["units"] = ["m", "m", "m", "1"]
    file.write_text(yaml.safe_dump(corrected))
    for wanted in ("auto", "belt_robot"):
        said = inspect(copied, f"embodiment.files=[{file}]", f"embodiment={wanted}")
        assert (said.code, "belt_robot, as described" in said.out) == (0, True)
    said = inspect(copied, "embodiment=generic", f"save_embodiment={file}")
    assert (said.code, "exists already" in said.err) == (2, True)


def test_a_page_with_pictures(inspect, dataset, tmp_path):
    said = inspect(dataset, f"output={tmp_path / 'page'}", "model=tiny", "episodes=2")
    assert said.code == 0, said.err
    page = (tmp_path / "page" / "index.html").read_text()
    for part in (
        "It fits.",
        "What the model sees",
        "What the model learns",
        "pick the red block",
        "aperture",
    ):
        assert part in page
    assert not re.search(r"(src|href)=\"(?!data:)", page), "the page refers outside"
    assert page.count("data:image/png") == 2
    frames = np.asarray(Image.open(tmp_path / "page" / "frames.png").convert("RGB"))
    actions = np.asarray(Image.open(tmp_path / "page" / "actions.png").convert("RGB"))
    red = (frames[..., 0] > 180) & (frames[..., 1:] < 90).all(-1)
    blue = (frames[..., 2] > 180) & (frames[..., 0] < 90)
    assert red.sum() > 500 and blue.sum() > 500, "no block is to be seen"
    ours = (actions == (31, 111, 235)).all(-1)  # the colour of actions
    assert ours[:, : ours.shape[1] // 2].sum() > 200 and ours[:, ours.shape[1] // 2 :].sum() > 40
    assert (inspect(dataset, f"output={tmp_path / 'page'}").code) == 2, "a used folder is refused"


def test_the_page_of_what_does_not_fit_says_so(inspect, dataset, tmp_path):
    said = inspect(dataset, f"output={tmp_path / 'page'}", "embodiment=panda")
    assert said.code == 2
    assert "It does not fit: " in (tmp_path / "page" / "index.html").read_text()


def test_human_video_has_no_actions_to_show(inspect, dataset, tmp_path):
    file = tmp_path / "person.yaml"
    file.write_text("{name: person, fps: 10, state: [], action: [], cameras: [observation.images.head]}")
    arguments = (dataset, "embodiment=person", f"embodiment.files=[{file}]", f"output={tmp_path / 'page'}")
    said = inspect(*arguments)
    assert (said.code, "trains foresight only" in " ".join(said.out.split())) == (0, True)
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == ["frames.png", "index.html"]


def test_pictures_that_cannot_be_decoded_are_a_problem(inspect, copied, tmp_path):
    video = next(copied.glob("videos/*head/*/*.mp4"))
    video.write_bytes(video.read_bytes()[:2000])
    said = inspect(copied, f"output={tmp_path / 'page'}")
    assert (said.code, "cannot be decoded" in said.out) == (2, True)
    assert (tmp_path / "page" / "actions.png").is_file()


@pytest.mark.parametrize("key", ["total_frames", "total_episodes", "robot_type", "data_path"])
def test_a_hostile_info_is_shown_or_a_sentence(inspect, copied, key):
    path = copied / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: ["many"]}))
    said = inspect(copied)
    assert said.code in (0, 2), said.err
    assert said.code == 0 or "does not fit" in said.err


@pytest.mark.parametrize("shape", [[0, 0, 3], [0, 96, 3], [3, 96, 0], [-96, 96, 3]])
def test_a_camera_without_pixels_has_no_size(inspect, copied, shape):
    path = copied / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"]["observation.images.head"]["shape"] = shape
    path.write_text(json.dumps(info))
    said = inspect(copied)
    assert said.code in (0, 2), said.err
    assert re.search(r"0 +│ observation\.images\.head +│ +│", said.out), "the others are shown"


def test_what_is_no_dataset_is_a_sentence(inspect, tmp_path):
    said = inspect(tmp_path / "nowhere")
    assert (said.code, "does not exist" in said.err) == (2, True)
    said = inspect()
    assert (said.code, "root must be given" in said.err) == (2, True)

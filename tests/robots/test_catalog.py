import re

import pytest
import yaml

from tests.robots.layouts import LAYOUTS, so100
from vla_mot.errors import ConfigError
from vla_mot.robots.catalog import catalog, embodiment_of, find_embodiment, known_embodiments, load_embodiment
from vla_mot.robots.embodiment import Embodiment

DESIGN = {
    "piper": ["piper"],
    "arx_lift2": ["arx_lift2", "ARX Lift-2"],
    "split_aloha": ["split_aloha", "AgileX Split Aloha"],
    "arx_ac_one": ["ARX AC One"],
    "genie1": ["genie1", "Genie-1"],
    "a2d": ["a2d"],
    "franka": ["franka", "Franka"],
    "aloha": ["aloha"],
    "panda": ["panda"],
}
OWN = {
    "name": "my_arm",
    "aliases": ["My Arm"],
    "fps": 30,
    "state": [{"key": "observation.state", "names": ["a"], "units": ["rad"]}],
    "action": [{"key": "action", "names": ["a"], "units": ["rad"], "delta": [True]}],
    "cameras": ["observation.images.top"],
}


@pytest.fixture
def write(tmp_path):
    def written(file: str = "my_arm.yaml", **changes):
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(OWN | changes))
        return path

    return written


@pytest.mark.parametrize("name", DESIGN)
def test_every_robot_of_the_design_is_found_by_every_spelling(name):
    for spelling in DESIGN[name]:
        for case in (spelling, spelling.lower(), spelling.upper()):
            found = find_embodiment(case)
            assert found is not None and found.name == name
    layout = LAYOUTS[name]
    assert embodiment_of(layout | {"robot_type": DESIGN[name][-1]}).name == name


def test_one_name_each():
    names = [e.name for e in known_embodiments()]
    assert names == sorted(set(names))
    assert set(DESIGN) <= set(names)


def test_a_users_file_is_found_by_name_and_alias(write):
    own = [write()]
    assert find_embodiment("my_arm") is None
    assert find_embodiment("MY ARM", own) == load_embodiment(own[0])
    assert embodiment_of({"robot_type": "My Arm"}, "auto", own).name == "my_arm"
    assert embodiment_of({}, "my_arm", own).fps == 30
    assert len(catalog(own)) == len(known_embodiments()) + 1


def test_a_folder_stands_for_its_files_and_none_counts_twice(write, tmp_path):
    file = write()
    write("other.yaml", name="other_arm", aliases=[])
    added = {e.name for e in catalog([tmp_path, file])} - {e.name for e in known_embodiments()}
    assert added == {"my_arm", "other_arm"}


def test_a_changed_file_is_read_again(write):
    file = write()
    assert load_embodiment(file).fps == 30
    write(fps=12.5)
    assert load_embodiment(file).fps == 12.5


def test_a_users_file_wins_over_a_packaged_one_of_its_name(write):
    file = write(name="franka", aliases=["Franka"])
    assert find_embodiment("Franka", [file]).state_dim == 1
    assert find_embodiment("Franka").state_dim == 8


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([{"file": "a.yaml"}, {"file": "b.yaml"}], r"a.yaml and .*b.yaml both describe 'my_arm'"),
        (
            [{"file": "a.yaml"}, {"file": "b.yaml", "name": "b", "aliases": ["MY_ARM"]}],
            "'MY_ARM' means two robots: 'my_arm' .*a.yaml.* and 'b' ",
        ),
        ([{"aliases": ["genie-1"]}], "means two robots: 'genie1' .*genie1.yaml.* and 'my_arm' .*my_arm.yaml"),
        ([{"name": "generic"}], "my_arm.yaml: an embodiment cannot be called 'generic'"),
        ([{"aliases": ["AUTO"]}], "cannot be called 'AUTO'"),
        ([{"camera": []}], "my_arm.yaml: unknown key 'embodiment.camera'. Did you mean 'embodiment.cameras'"),
    ],
)
def test_what_clashes_is_refused(write, files, message):
    with pytest.raises(ConfigError, match=message):
        catalog([write(**changes) for changes in files])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "my_arm.yaml cannot be read: No such file or directory. Did you mean 'my_arms.yaml'?"),
        (b"a: [", "my_arm.yaml is no YAML"),
        (b"\xff\xfe\x00", "my_arm.yaml is no YAML"),
        (b"name: a\nfps: 10\nname: b\n", "my_arm.yaml is no YAML: key 'name' is given twice\n  in"),
        (b"state: [{key: a, names: [x], key: b}]", "key 'key' is given twice"),
        (b"- 1", "my_arm.yaml: embodiment: expected a group of keys"),
        (b"", "my_arm.yaml: embodiment: expected a group of keys"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path, content, message):
    (tmp_path / "my_arms.yaml").touch()
    if content is not None:
        (tmp_path / "my_arm.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_embodiment(tmp_path / "my_arm.yaml")
    assert message in str(caught.value)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no embodiment"):
        catalog([tmp_path])


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("frankq", "unknown robot type 'frankq'. Did you mean 'franka'?"),
        ("so100", "unknown robot type 'so100'. Known: a2d, aloha"),
        (None, "the dataset states no robot type. Known: a2d"),
        ("", "the dataset states no robot type."),
        ([1], r"unknown robot type [1]."),
    ],
)
def test_an_unknown_robot_type_names_the_ways_out(told, message):
    with pytest.raises(ConfigError) as caught:
        embodiment_of(so100() | {"robot_type": told})
    assert message in str(caught.value)
    for way in ("embodiment=…", "YAML file of your own", "embodiment=generic", "vla-mot data inspect"):
        assert way in str(caught.value)


def test_the_generic_embodiment_is_asked_for_by_name():
    assert embodiment_of(so100(), "generic").name == "so100"
    with pytest.raises(ConfigError, match=r"unknown embodiment 'generik'\. Did you mean 'generic'"):
        embodiment_of(so100(), "generik")


def test_the_page_about_robots_tells_what_is_there(repository):
    """Every packaged robot with its aliases and widths, and an example that loads."""
    page = (repository / "docs" / "robots.md").read_text()
    (example,) = re.findall(r"```yaml[^\n]*\n(.*?)```", page, flags=re.DOTALL)
    assert Embodiment.from_dict(yaml.safe_load(example)).delta_mask == (True, True, False)
    rows = {row.split("|")[1]: row for row in page.splitlines() if row.startswith("| `")}
    for robot in known_embodiments():
        row = next(row for names, row in rows.items() if f"`{robot.name}`" in names)
        if "conveyor" not in robot.name:
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            assert cells[1:3] == [", ".join(robot.aliases), f"{robot.state_dim}, {robot.action_dim}"]

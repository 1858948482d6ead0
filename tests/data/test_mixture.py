import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.composed import composed
from tests.data.bare import bare_dataset
from tests.robots.layouts import LAYOUTS, info, so100, vector, video
from vla_mot.data.mixture import Mixture, find_datasets, resolve_mixture
from vla_mot.data.mixture_config import Declared, Group, MixtureConfig, Override
from vla_mot.errors import ConfigError, DatasetError
from vla_mot.options import section
from vla_mot.robots.generic import embodiment_yaml, infer_embodiment

SIZES = {"arms/a": (100, 20), "arms/b": (400, 10), "people/c": (50, 5)}
"""(frames, episodes) of each dataset."""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    for name, (frames, episodes) in SIZES.items():
        bare_dataset(folder / name, frames, episodes)
    return folder


def group(pattern: str | tuple[str, ...] = "arms/*", weight: float = 1.0, **more) -> Group:
    return Group(pattern, weight, embodiment=more.pop("embodiment", "generic"), **more)


def resolve(root: Path, groups: dict[str, Group], **more) -> Mixture:
    return resolve_mixture(MixtureConfig(root, groups, **more))


def weights(mixture: Mixture) -> dict[str, float]:
    return {entry.name: entry.weight for entry in mixture.entries}


# ---- weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "of_a", "of_b"),
    [
        ({}, 100, 400),
        ({"by": "frames", "exponent": 0.5}, 10, 20),
        ({"by": "frames", "exponent": 0.0}, 1, 1),
        ({"by": "episodes"}, 20, 10),
        ({"by": "episodes", "exponent": 2.0}, 400, 100),
        ({"by": "uniform", "exponent": 3.0}, 1, 1),
    ],
)
def test_a_group_shares_its_weight_by_its_rule(root, rule, of_a, of_b):
    found = weights(resolve(root, {"arms": group(weight=7.0, **rule)}))
    assert found == pytest.approx({"arms/a": of_a / (of_a + of_b), "arms/b": of_b / (of_a + of_b)})


def test_groups_weigh_relative_to_each_other_whatever_their_sizes(root):
    found = weights(resolve(root, {"arms": group(weight=3.0), "people": group("people/*", 1.0)}))
    assert found == pytest.approx({"arms/a": 0.15, "arms/b": 0.6, "people/c": 0.25})


def test_a_share_is_a_factor_within_the_group(root):
    groups = {"arms": group(weight=3.0), "people": group("people/*", 1.0)}
    found = weights(resolve(root, groups, datasets={"arms/a": Override(share=4.0)}))
    assert found == pytest.approx({"arms/a": 0.375, "arms/b": 0.375, "people/c": 0.25})


def test_what_is_skipped_leaves_its_weight_to_the_others_of_its_group(root):
    groups = {"arms": group(weight=3.0), "people": group("people/*", 1.0)}
    found = weights(resolve(root, groups, datasets={"arms/b": Override(skip=True)}))
    assert found == pytest.approx({"arms/a": 0.75, "people/c": 0.25})


def test_entries_tell_what_the_dataset_says(root):
    entry = resolve(root, {"arms": group("arms/b")}).entries[0]
    assert (entry.root, entry.group, entry.frames, entry.episodes) == (root / "arms/b", "arms", 400, 10)
    assert (entry.fps, entry.robot.name, entry.hours) == (30, "so100", pytest.approx(400 / 30 / 3600))


# ---- which datasets -----------------------------------------------------------------------------------------


def test_several_patterns_are_one_group_in_which_a_dataset_counts_once(root):
    found = resolve(root, {"all": group(("arms/*", "arms/a", "people/c"))})
    assert [entry.name for entry in found.entries] == sorted(SIZES)


def test_a_star_stands_for_slashes_too_and_case_counts(root):
    assert len(resolve(root, {"all": group("*")}).entries) == 3
    with pytest.raises(ConfigError, match="matches 'Arms/"):
        resolve(root, {"all": group("Arms/*")})


@pytest.mark.parametrize(
    ("groups", "datasets", "message"),
    [
        (
            {"x": group("arms/*"), "y": group("*/a")},
            {},
            "dataset 'arms/a' belongs to groups 'x' and 'y'; narrow",
        ),
        ({"x": group("people/cc")}, {}, "group 'x': no dataset under "),
        ({"x": group("people/cc")}, {}, "matches 'people/cc'. Did you mean 'people/c'? There are 3: arms/a"),
        ({"x": group(("arms/*", "none/*"))}, {}, "matches 'none/*'"),
        ({"x": group()}, {"arms/aa": Override()}, "unknown dataset in data.datasets 'arms/aa'. Did you mean"),
        ({"x": group()}, {"people/c": Override()}, "'people/c'. Known: arms/a, arms/b"),
        ({"x": group("arms/a")}, {"arms/a": Override(skip=True)}, "every dataset of group 'x' is skipped"),
        ({"x": group(embodiment="auto")}, {}, "unknown robot type 'so100'"),
        ({"x": group()}, {"arms/b": Override(embodiment="frankq")}, "Did you mean 'franka'?"),
    ],
)
def test_a_mistake_in_the_mixture_is_named(root, groups, datasets, message):
    with pytest.raises(ConfigError) as caught:
        resolve(root, groups, datasets=datasets)
    assert message in str(caught.value)


def test_a_dataset_that_does_not_fit_its_robot_is_named(root):
    with pytest.raises(DatasetError, match="arms/b does not fit embodiment 'franka'"):
        resolve(root, {"x": group()}, datasets={"arms/b": Override(embodiment="franka")})


def test_the_greatest_exponents_weights_and_shares_still_weigh(tmp_path):
    bare_dataset(tmp_path / "a", 10**12)
    bare_dataset(tmp_path / "b", 10**12)
    shares = {name: Override(share=1e15) for name in "ab"}
    found = weights(resolve(tmp_path, {"x": group("*", 1e15, exponent=10.0)}, datasets=shares))
    assert found == {"a": 0.5, "b": 0.5}


def test_datasets_are_found_at_any_depth_but_not_in_hidden_folders_or_datasets(tmp_path):
    for name in ("b/deep/er", "a", "a/videos/inner", ".cache/d"):
        bare_dataset(tmp_path / name)
    (tmp_path / "empty" / "meta").mkdir(parents=True)
    assert find_datasets(tmp_path) == ("a", "b/deep/er")
    with pytest.raises(DatasetError, match="is no folder"):
        find_datasets(tmp_path / "c")


def test_links_are_followed_and_circles_end(tmp_path):
    bare_dataset(tmp_path / "elsewhere" / "a")
    (tmp_path / "root" / "mine").mkdir(parents=True)
    os.symlink(tmp_path / "elsewhere", tmp_path / "root" / "mine" / "linked")
    os.symlink(tmp_path / "root", tmp_path / "root" / "mine" / "circle")
    assert find_datasets(tmp_path / "root") == ("mine/linked/a",)


@pytest.mark.parametrize("names", ["xcmbz", "zbmcx"])
def test_of_several_links_the_first_by_name_is_the_dataset(tmp_path, names):
    bare_dataset(tmp_path / "elsewhere" / "a")
    (tmp_path / "root").mkdir()
    for name in names:  # a file system may list them in this order, in the reverse, or in one of its own
        os.symlink(tmp_path / "elsewhere", tmp_path / "root" / name)
    assert find_datasets(tmp_path / "root") == ("b/a",)


def test_without_groups_a_folder_of_datasets_asks_for_them(root):
    with pytest.raises(DatasetError, match=r"is not a LeRobot dataset.*data.groups of a mixture"):
        resolve_mixture(MixtureConfig(root))


def test_without_groups_the_root_is_the_one_dataset(root):
    robot = infer_embodiment(so100())
    (entry,) = resolve_mixture(MixtureConfig(root / "arms/a", embodiment=robot)).entries
    assert (entry.name, entry.weight, entry.robot, entry.frames) == ("a", 1.0, robot, 100)


# ---- declared -----------------------------------------------------------------------------------------------


def test_the_papers_mixture_resolves_without_its_data():
    told = composed("mixture", "data=a1_pretrain")["data"]["groups"]
    groups = {name: section(Group, f"data.groups.{name}", spec) for name, spec in told.items()}
    assert [name for name, spec in groups.items() if spec.foresight_only] == ["egodex"]
    mixture = resolve_mixture(MixtureConfig(None, groups))
    assert {entry.name: (round(entry.weight, 12), entry.frames) for entry in mixture.entries} == {
        "interndata_a1": (0.64, 396_000_000),
        "robotwin": (0.08, 17_000_000),
        "agibot_world_beta": (0.18, 206_000_000),
        "robomind": (0.02, 5_000_000),
        "egodex": (0.08, 68_000_000),
    }
    with pytest.raises(DatasetError, match=r"only declares agibot_world_beta, .*: give data.root="):
        mixture.require_data()


def test_declared_weights_are_relative_too_and_data_that_is_there_is_read(root):
    declared = Declared(frames=360_000, episodes=7, fps=10)
    groups = {"a": group(weight=3.0, declared=declared), "b": group("people/*", declared=declared)}
    entries = resolve_mixture(MixtureConfig(None, groups)).entries
    assert [(e.weight, e.frames, e.episodes, e.hours) for e in entries] == [
        (0.75, 360_000, 7, 10),
        (0.25, 360_000, 7, 10),
    ]
    assert weights(resolve(root, groups)) == pytest.approx({"arms/a": 0.15, "arms/b": 0.6, "people/c": 0.25})


def test_without_root_every_group_must_declare():
    groups = {"a": group(declared=Declared(frames=1)), "b": group(), "c": group()}
    with pytest.raises(ConfigError, match=r"data.root must be given.* groups b, c do not declare"):
        resolve_mixture(MixtureConfig(None, groups))


# ---- robots and manifest ------------------------------------------------------------------------------------


def rated(tmp_path: Path, fps: float | None, **rates: float) -> Mixture:
    """Datasets at different rates of one robot whose file says `fps`."""
    for name, rate in rates.items():
        bare_dataset(tmp_path / name, fps=rate)
    robot = replace(infer_embodiment(so100(), "desk"), fps=fps)
    (tmp_path / "desk.yaml").write_text(embodiment_yaml(robot))
    return resolve(tmp_path, {"all": group("*", embodiment="desk")}, embodiments=(tmp_path / "desk.yaml",))


def test_a_robot_without_a_rate_has_that_of_its_datasets_and_none_where_they_differ(tmp_path):
    assert rated(tmp_path / "one", None, a=20, b=20).embodiments[0].fps == 20
    assert rated(tmp_path / "two", None, a=20, b=10).embodiments[0].fps is None
    with pytest.raises(DatasetError, match="it has 10 fps, the embodiment 20"):
        rated(tmp_path / "three", 20, a=20, b=10)


def test_an_inferred_robot_is_one_at_all_rates(tmp_path):
    for name, rate in {"a": 10, "b": 20, "c": 20}.items():
        bare_dataset(tmp_path / name, fps=rate)
    (robot,) = resolve(tmp_path, {"all": group("*")}).embodiments
    assert (robot.name, robot.fps) == ("so100", None)
    (robot,) = resolve(tmp_path, {"all": group(("b", "c"))}).embodiments
    assert robot == infer_embodiment(so100() | {"fps": 20})


def test_two_layouts_of_one_name_are_refused(tmp_path):
    bare_dataset(tmp_path / "a")
    bare_dataset(tmp_path / "b", info=LAYOUTS["franka"] | {"robot_type": "so100"})
    with pytest.raises(
        ConfigError, match=r"two robots of different layout are called 'so100', .* dataset 'b'"
    ):
        resolve(tmp_path, {"all": group("*")})


def test_what_is_declared_to_train_foresight_only_has_neither_state_nor_action(tmp_path):
    bare_dataset(tmp_path / "people/tracked")  # with states and actions, as of hands that were tracked
    bare_dataset(tmp_path / "people/seen", info=info({"observation.images.eye": video()}))
    bare_dataset(tmp_path / "arms")
    groups = {"people": group("people/*", foresight_only=True), "arms": group("arms")}
    arms, seen, tracked = (entry.robot for entry in resolve(tmp_path, groups).entries)
    assert (arms.name, arms.state_dim, arms.action_dim) == ("so100", 6, 6)
    assert (seen.name, seen.state_dim, seen.action_dim) == ("generic_s0_a0", 0, 0)
    assert (tracked.name, tracked.state_dim, tracked.action_dim) == ("so100_video", 0, 0)
    assert tracked.cameras == arms.cameras


def test_every_robot_is_listed_once_by_name(tmp_path):
    franka = LAYOUTS["franka"] | {"robot_type": "Franka"}
    bare_dataset(tmp_path / "a", info=so100())
    bare_dataset(tmp_path / "b", info=franka)
    bare_dataset(tmp_path / "c", info=so100())
    found = resolve(tmp_path, {"all": group("*")})
    assert [robot.name for robot in found.embodiments] == ["franka", "so100"]


def test_the_manifest_tells_one_mixture_from_another(tmp_path):
    def manifest() -> list[dict]:
        return resolve(tmp_path, {"all": group("*")}).manifest()

    bare_dataset(tmp_path / "a", 300, 3)
    bare_dataset(tmp_path / "b", 100, 1, info({"observation.images.eye": video(), "state": vector(2)}))
    before = manifest()
    same = {"group": "all", "fps": 30.0}
    assert [{k: v for k, v in row.items() if k != "revision"} for row in before] == [
        same | {"dataset": "a", "embodiment": "so100", "frames": 300, "episodes": 3, "weight": 0.75},
        same | {"dataset": "b", "embodiment": "generic_s2_a0", "frames": 100, "episodes": 1, "weight": 0.25},
    ]
    assert manifest() == before
    (tmp_path / "a/meta/tasks.parquet").write_bytes(b"another")
    after = manifest()
    assert (after[0]["revision"] != before[0]["revision"], after[1]) == (True, before[1])

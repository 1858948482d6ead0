import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.bare import bare_dataset

GENERIC = "data.groups={arms: {pattern: 'arms/*', weight: 3, embodiment: generic}, "


@pytest.fixture
def root(tmp_path) -> Path:
    """Two datasets of arms and one of people."""
    bare_dataset(tmp_path / "arms/a", 1000, 10)
    bare_dataset(tmp_path / "arms/b", 3000, 10)
    bare_dataset(tmp_path / "people/c", 10_800, 4)
    return tmp_path


@pytest.fixture
def words(root) -> tuple[str, ...]:
    groups = GENERIC + "people: {pattern: people/c, weight: 1, embodiment: generic}}"
    return ("data", "mixture", f"data.root={root}", groups, "steps=100", "batch_size=40")


def rows(out: str) -> dict[str, list[list[str]]]:
    """First column → the others of each line of the printed tables."""
    found: dict[str, list[list[str]]] = {}
    for line in out.splitlines():
        if line.count("│") > 5:
            name, *cells = [cell.strip() for cell in line.strip("│").split("│")]
            found.setdefault(name, []).append(cells)
    return found


def test_groups_and_datasets_with_weights_hours_and_epochs(vla_mot, words):
    said = vla_mot(*words)
    assert said.code == 0, said.err
    told = rows(said.out)
    assert told["arms"] == [["0.7500", "2", "4,000", "0.04", "0.75"]]
    assert told["people"] == [["0.2500", "1", "10,800", "0.10", "0.0926"]]
    assert told["all"] == [["1.0000", "3", "14,800", "0.14", "0.27"]]
    assert told["arms/b"] == [["so100", "0.562500", "3,000", "30", "0.03", "0.75"]]
    assert [name for name in told if "/" in name] == ["arms/b", "people/c", "arms/a"], "the heaviest first"
    assert "epochs after 100 steps of 40 samples" in said.out


def test_epochs_count_the_frames_that_are_not_held_out(vla_mot, words):
    said = vla_mot(*words, "data.validation_fraction=0.25")
    assert said.code == 0, said.err
    told = rows(said.out)
    assert told["arms"] == [["0.7500", "2", "4,000", "0.04", "0.938"]], "2 of 10 episodes are held out"
    assert told["people/c"] == [["so100", "0.250000", "10,800", "30", "0.10", "0.123"]], "1 of 4"
    assert "a worker holds 3 datasets, 11,300 frames" in said.out
    assert "samples, over what is not held out" in " ".join(said.out.split())
    said = vla_mot(*words, "data.validation_fraction=0.95")
    assert (said.code, "dataset arms/a: 10 episodes cannot be split" in said.err) == (2, True)


def test_declared_frames_are_held_out_too(vla_mot):
    said = vla_mot("data", "mixture", "data=a1_pretrain", "data.validation_fraction=0.5")
    assert rows(said.out)["robotwin"][0][-1] == "3.37"


def test_no_more_rows_than_asked_for(vla_mot, words):
    told = rows(vla_mot(*words, "rows=1").out)
    assert [name for name in told if "/" in name] == ["arms/b"]
    assert "… 2 more (rows=3)" in told


def test_what_workers_hold_and_what_comes_out(vla_mot, words):
    exact = vla_mot(*words, "ranks=2", "data.workers=2").out
    assert "exact: 4 shards for 4 workers; a worker holds" in exact
    off = float(exact.split("by more than ")[1].split()[0])
    assert off < 1e-9
    whole = vla_mot(*words, "ranks=2", "data.assignment=lpt").out
    assert float(whole.split("by more than ")[1].split()[0]) > 0.1


def test_one_worker_holds_all(vla_mot, words):
    out = vla_mot(*words).out
    assert "exact: 1 shard for 1 worker; a worker holds 3 datasets, 14,800 frames" in out


def test_the_papers_mixture_is_shown_without_its_data(vla_mot):
    said = vla_mot("data", "mixture", "data=a1_pretrain", "ranks=64", "data.workers=8")
    assert said.code == 0, said.err
    told = rows(said.out)
    assert told["robotwin"] == [["0.0800", "declared", "17,000,000", "unknown", "1.69"]]
    assert told["all"] == [["1.0000", "5", "692,000,000", "unknown", "0.518"]]
    assert "512 shards for 512 workers" in said.out


def test_a_manifest_is_written_once(vla_mot, words, tmp_path):
    path = tmp_path / "manifest.json"
    assert vla_mot(*words, f"manifest={path}").code == 0
    written = json.loads(path.read_text())["datasets"]
    assert [(row["dataset"], row["weight"]) for row in written] == [
        ("arms/a", 0.1875),
        ("arms/b", 0.5625),
        ("people/c", 0.25),
    ]
    said = vla_mot(*words, f"manifest={path}")
    assert (said.code, "is already there" in said.err) == (2, True)
    said = vla_mot("data", "mixture", "data=a1_pretrain", f"manifest={tmp_path / 'other.json'}")
    assert (said.code, "give data.root=" in said.err) == (2, True)
    assert not (tmp_path / "other.json").exists()


Refused = Callable[..., str]


@pytest.fixture
def refused(vla_mot, root) -> Refused:
    """What the command says of arguments that it refuses."""

    def run(*arguments: str) -> str:
        said = vla_mot("data", "mixture", f"data.root={root}", *arguments)
        assert said.code == 2, said
        return said.err

    return run


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("{x: {pattern: 'arm/*', weight: 1}}", "no dataset under"),
        ("{x: {pattern: 'arms/*'}}", "data.groups.x.weight (a number) must be given"),
        ("{x: {pattern: 'arms/*', weight: 1, exponant: 2}}", "Did you mean 'data.groups.x.exponent'?"),
        ("{x: {pattern: 'arms/*', weight: 1, exponent: 1000}}", "exponent must lie in 0 … 10, got 1000"),
        ("{x: {pattern: 'arms/*', weight: inf}}", "weight must be positive and at most 1e+15, got inf"),
    ],
)
def test_a_mistake_gets_a_sentence(refused, groups, message):
    assert message in refused(f"data.groups={groups}")


@pytest.fixture
def own(tmp_path) -> Callable[[str], tuple[str, ...]]:
    """A mixture of one's own: what stands in its file → the arguments that choose it."""

    def write(groups: str) -> tuple[str, ...]:
        path = tmp_path / "presets" / "data" / "mine.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"defaults: [mixture]\ngroups:\n{groups}")
        return ("--config-dir", str(tmp_path / "presets"), "data=mine")

    return write


ARMS = "{pattern: 'arms/*', weight: 1, embodiment: generic}"


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (f"  x: {ARMS}\n  x: {ARMS}\n", "found duplicate key x"),
        ("  x: {pattern: [", "expected the node content"),
        (f"  true: {ARMS}\n", "the name True in data.groups: expected text, got True (bool)"),
        (f"  1: {ARMS}\n  '1': {ARMS}\n", "data.groups: '1' is given twice"),
        ("  x: {pattern: '*', weight: .inf}\n", "weight must be positive and at most 1e+15, got inf"),
    ],
)
def test_a_mistake_in_a_file_of_ones_own_gets_a_sentence(refused, own, groups, message):
    said = refused(*own(groups))
    assert message in said
    assert "Traceback" not in said
    if "YAML" in said:
        assert "presets/data/mine.yaml" in said


@pytest.mark.parametrize(("name", "pattern"), [("pick[v1]", "*"), ("x[/b]", "*/*")])
def test_names_are_no_markup(vla_mot, own, tmp_path, name, pattern):
    root, manifest = tmp_path / "root", tmp_path / "told[v1].json"
    bare_dataset(root / name, 1000, 10)
    mine = own(f"  '{name}': {{pattern: '{pattern}', weight: 1, embodiment: generic}}\n")
    said = vla_mot("data", "mixture", *mine, f"data.root={root}", f"manifest='{manifest}'")
    assert said.code == 0, said.err
    group, dataset = rows(said.out)[name]
    assert (len(group), dataset[0]) == (5, "so100")
    assert f"manifest: {manifest}" in said.out.replace("\n", "")


def test_a_number_names_a_group(vla_mot, own, root):
    said = vla_mot("data", "mixture", *own(f"  1: {ARMS}\n"), f"data.root={root}")
    assert said.code == 0, said.err
    assert rows(said.out)["1"][0][1] == "2"

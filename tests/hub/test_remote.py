"""`fetch` and `push` against a Hub on this machine. Every call is a process of its own: see `hub_client`."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from tests.hub import hub_client
from tests.hub.loopback_hub import OWNER, READER, STRANGER, Cut, LoopbackHub, client_environment

from vla_mot.errors import CheckpointError
from vla_mot.hub.remote import Origin, fetch, origin
from vla_mot.hub.upload import push

NAME = "org/policy"
MIB = 2**20
POLICY = {
    "config.json": b'{"type": "vla_mot"}',
    "stats.json": b'{"conveyor": {}}',
    "README.md": b"---\nlicense: mit\n---\n# A policy\n",
    "model.safetensors": save({"weight": np.arange(1000, dtype=np.float32)}),
}
OTHERS = {"pytorch_model.bin": b"\x80\x02.", "encoder.jit": b"PK\x03\x04", "checkpoints/1/state.json": b"{}"}
SHARDS = {
    "model.safetensors.index.json": b'{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}',
    "model-1.safetensors": save({"a": np.zeros(3)}),
    "model-2.safetensors": save({"b": np.zeros(4)}),
}


class Client:
    """Calls `fetch` and `push` in fresh processes that share one HF_HOME."""

    def __init__(self, server: hub_client.Server, url: str, home: Path) -> None:
        self.server, self.url, self.home, self.log = server, url, home, ""
        home.mkdir()

    def start(self, call: str, *arguments: object) -> subprocess.Popen:
        """Begin a call in a process that can be killed."""
        task = json.dumps([call, [str(argument) for argument in arguments], {}])
        return subprocess.Popen(
            [sys.executable, hub_client.__file__, task],
            env=client_environment(self.url, self.home),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def ask(
        self, call: str, *arguments: object, env: dict | None = None, limit: int = 0, **options: object
    ) -> dict:
        task = [call, [str(argument) for argument in arguments], options]
        environment = client_environment(self.url, self.home, **(env or {}))
        answer, self.log = self.server.ask(task, environment, limit, self.home)
        assert answer.pop("heavy") == []
        return answer

    def fetch(self, *arguments: object, **options: object) -> Path:
        return Path(self.ask("fetch", *arguments, **options)["result"])

    def error(self, call: str, *arguments: object, **options: object) -> str:
        return self.ask(call, *arguments, **options)["error"]


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def server() -> Iterator[hub_client.Server]:
    server = hub_client.Server()
    yield server
    server.close()


@pytest.fixture
def client(server, hub, tmp_path):
    return Client(server, hub.url, tmp_path / "home")


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def written(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


# ---- fetch ------------------------------------------------------------------------------------------------------


def test_what_a_policy_needs_is_fetched_and_then_found_offline(hub, client):
    commit = hub.commit(NAME, POLICY | OTHERS)
    folder = client.fetch(NAME)
    assert content(folder) == POLICY
    assert origin(folder) == Origin(NAME, commit)

    hub.requests.clear()
    assert client.fetch(NAME, env={"HF_HUB_OFFLINE": "1"}) == folder
    assert client.fetch(NAME, local_files_only=True) == folder
    assert hub.requests == []

    client.url = closed_port()
    assert client.fetch(NAME) == folder
    assert f"using commit {commit} of {NAME} from the cache" in client.log


def test_a_policys_tokenizer_is_the_one_folder_that_is_fetched(hub, client, tmp_path):
    own = {"tokenizer/tokenizer.json": b"{}", "tokenizer/merges.txt": b"a b"}
    others = ("t", "tok", "tokens", "tokenizers", "tools", "runs", "tokenizer/more", "a/tokenizer")
    pickle = {"tokenizer/evil.pkl": b"\x80\x02."}
    hub.commit(NAME, POLICY | own | pickle | {f"{folder}/config.json": b"{}" for folder in others})
    assert content(client.fetch(NAME)) == POLICY | own
    client.ask("push", written(tmp_path / "policy", POLICY), NAME, token=OWNER)
    assert content(client.fetch(NAME)) == POLICY, "what a replaced policy had does not stay behind"


def test_a_second_fetch_brings_only_what_changed(hub, client):
    hub.commit(NAME, POLICY)
    client.fetch(NAME)
    hub.requests.clear()
    hub.commit(NAME, {"stats.json": b"{}"})
    assert content(client.fetch(NAME)) == POLICY | {"stats.json": b"{}"}
    assert [len(hub.gets(name)) for name in POLICY] == [0, 1, 0, 0]


def test_a_revision_is_pinned(hub, client):
    first = hub.commit(NAME, POLICY)
    hub.repository(NAME).tags["v1"] = first
    second = hub.commit(NAME, {"stats.json": b"{}"})
    assert [client.fetch(NAME, revision=r).name for r in ("v1", "main", first)] == [first, second, first]

    hub.requests.clear()
    assert (client.fetch(NAME, revision=first) / "stats.json").read_bytes() == POLICY["stats.json"]
    assert hub.requests == []  # a commit that is complete in the cache needs no question
    offline = {"HF_HUB_OFFLINE": "1"}
    assert client.fetch(NAME, revision="v1", env=offline).name == first
    error = client.error("fetch", NAME, revision="v2", env=offline)
    assert "HF_HUB_OFFLINE=1" in error and f"main, v1, {min(first, second)[:12]}" in error


def test_shards_are_fetched_and_a_missing_one_is_named(hub, client):
    files = {name: data for name, data in POLICY.items() if name != "model.safetensors"} | SHARDS
    hub.commit(NAME, files)
    assert content(client.fetch(NAME)) == files
    del files["model-2.safetensors"]
    hub.commit("org/torn", files)
    assert "model-2.safetensors is missing" in client.error("fetch", "org/torn")


# ---- what goes wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "said"),
    [(None, "no token was sent"), (STRANGER, "the account of your token has no access")],
)
def test_a_gated_repository_says_where_to_ask(hub, client, token, said):
    hub.commit(NAME, POLICY, gated=True)
    error = client.error("fetch", NAME, env={"HF_TOKEN": token} if token else {})
    assert f"{NAME} is gated, and {said}" in error
    assert f"Ask for access on {hub.url}/{NAME}" in error and "hf auth login" in error
    assert content(client.fetch(NAME, env={"HF_TOKEN": READER})) == POLICY


@pytest.mark.parametrize("token", [None, STRANGER])
def test_private_and_absent_repositories_sound_alike(hub, client, token):
    hub.commit("org/secret", POLICY, private=True)
    env = {"HF_TOKEN": token} if token else {}
    private = client.error("fetch", "org/secret", env=env)
    assert "'org/secret' that you may read: it does not exist, or it is private" in private
    assert ("no token was sent" in private) == (token is None)
    assert client.error("fetch", "org/absent", env=env) == private.replace("org/secret", "org/absent")
    assert content(client.fetch("org/secret", token=READER)) == POLICY


def test_a_dataset_is_no_policy(hub, client):
    hub.repository("org/demonstrations", "dataset")
    assert "There is a dataset of that name" in client.error("fetch", "org/demonstrations")


def test_an_unknown_revision_is_answered_with_the_known_ones(hub, client):
    hub.repository(NAME).tags["v1.0"] = hub.commit(NAME, POLICY)
    error = client.error("fetch", NAME, revision="v1.1")
    assert (
        f"{NAME} has no revision 'v1.1'. Did you mean 'v1.0'? Expected a branch or tag (main, v1.0)" in error
    )


def test_a_wrong_token_is_named_but_not_shown(hub, client):
    hub.commit(NAME, POLICY)
    error = client.error("fetch", NAME, env={"HF_TOKEN": "hf_expired"})
    assert "rejected your token" in error and "hf_expired" not in error


def test_no_network_and_nothing_cached(client):
    client.url = closed_port()
    error = client.error("fetch", NAME)
    assert f"the connection to {client.url} failed while fetching {NAME} (ConnectError" in error
    assert f"the cache {client.home / 'hub'} does not hold all of it" in error


def test_a_cache_with_holes_is_not_used(hub, client):
    """A cache that an older huggingface_hub left has no listing by which holes are found."""
    commit = hub.commit(NAME, POLICY)
    folder = client.fetch(NAME)
    (folder / "model.safetensors").unlink()
    (folder.parents[1] / "trees" / f"{commit}.json").unlink()
    assert "fetch it once with a connection" in client.error("fetch", NAME, local_files_only=True)
    url, client.url = client.url, closed_port()
    assert f"the connection to {client.url} failed" in client.error("fetch", NAME, revision=commit)
    client.url = url
    assert content(client.fetch(NAME, revision=commit)) == POLICY


def test_a_hub_that_is_down_says_so(hub, client):
    hub.down = True
    assert "answered 503 when asked for org/policy: the Hub is down for maint" in client.error("fetch", NAME)


def test_a_repository_of_pickles_is_refused(hub, client):
    hub.commit(NAME, {"config.json": b"{}"} | OTHERS)
    error = client.error("fetch", NAME)
    assert "model.safetensors is missing; it has .gitattributes, config.json, pytorch_model.bin" in error
    assert "pytorch_model.bin is a pickle, which is never fetched" in error
    assert hub.gets("pytorch_model.bin") == []


def test_a_full_disk(hub, client):
    """The process may write no file of more than 64 kB: the same failure at the same place as a full disk."""
    hub.commit(NAME, POLICY | {"model.safetensors": save({"weight": np.zeros(100_000)})})
    error = client.error("fetch", NAME, limit=64_000)
    assert f"no room for {NAME} in the cache {client.home / 'hub'} (" in error and "HF_HOME" in error
    hub.requests.clear()
    client.fetch(NAME)
    assert hub.gets("model.safetensors") == [None]


# ---- interrupted downloads --------------------------------------------------------------------------------------


@pytest.fixture
def big(hub) -> bytes:
    weights = save({"weight": np.random.default_rng(0).random(13 * MIB // 8)})
    hub.commit(NAME, POLICY | {"model.safetensors": weights})
    return weights


def test_a_dropped_connection_is_taken_up_where_it_broke(hub, client, big):
    hub.cuts["model.safetensors"] = [Cut(11 * MIB)]
    assert (client.fetch(NAME) / "model.safetensors").read_bytes() == big
    assert hub.gets("model.safetensors") == [
        None,
        f"bytes={10 * MIB}-",
    ]  # huggingface_hub writes 10 MiB at a time


def test_what_was_finished_survives_a_reset(hub, client, big):
    hub.cuts["model.safetensors"] = [Cut(11 * MIB, "reset")]
    error = client.error("fetch", NAME)
    assert "the connection to" in error and "try again: files that are finished are kept" in error
    assert (client.fetch(NAME) / "model.safetensors").read_bytes() == big
    assert {name: len(hub.gets(name)) for name in POLICY} == dict.fromkeys(POLICY, 1) | {
        "model.safetensors": 2
    }


def test_what_was_finished_survives_a_killed_process(hub, client, big):
    hub.cuts["model.safetensors"] = [Cut(11 * MIB, "hang")]
    snapshots = client.home / "hub" / "models--org--policy" / "snapshots"
    with client.start("fetch", NAME) as process:
        deadline = time.monotonic() + 60
        while len([p for p in snapshots.glob("*/*") if p.is_file()]) < 3 or not hub.gets("model.safetensors"):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()
    assert "is not complete in the cache" in client.error("fetch", NAME, local_files_only=True)
    assert (client.fetch(NAME) / "model.safetensors").read_bytes() == big
    assert {name: len(hub.gets(name)) for name in POLICY} == dict.fromkeys(POLICY, 1) | {
        "model.safetensors": 2
    }


# ---- names ------------------------------------------------------------------------------------------------------


def test_a_folder_is_returned_as_it_is(tmp_path, monkeypatch):
    assert fetch(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "policy").mkdir(parents=True)
    assert fetch(NAME) == Path(NAME)
    assert origin(tmp_path) is None and origin("/") is None
    with pytest.raises(CheckpointError, match="is a local folder and has no revisions, but revision='v1'"):
        fetch(tmp_path, revision="v1")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("runs/demoo/policy/deep", "neither an existing folder nor a Hub repository id"),
        ("policy", "neither an existing folder"),
        ("", "neither an existing folder"),
        ("org/po licy", "neither an existing folder"),
        ("~nobody-here/policy", "neither an existing folder"),
        ("a" * 300, "neither an existing folder"),
        (Path("runs/deno"), "Did you mean the folder 'runs/demo'"),
        ("./runs/dem", "Did you mean the folder 'runs/demo'"),
        ("runs/config.json", "is a file; give the folder that holds config.json"),
    ],
)
def test_a_name_that_is_nothing(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "runs", {"config.json": b"{}", "demo/config.json": b"{}"})
    with pytest.raises(CheckpointError, match=said):
        fetch(name)


# ---- push -------------------------------------------------------------------------------------------------------


def test_what_is_pushed_is_fetched_equal(hub, client, tmp_path):
    folder = written(tmp_path / "policy", POLICY | {"picture.png": b"a picture", ".notes": b"mine"})
    env = {"HF_TOKEN": OWNER}
    url = client.ask("push", folder, NAME, private=True, message="The first", env=env)["result"]
    commit = hub.repository(NAME).branches["main"]
    assert url == f"{hub.url}/{NAME}/commit/{commit}"
    assert hub.repository(NAME).messages[-1] == "The first" and hub.repository(NAME).private
    assert hub.repository(NAME).commits[commit].keys() - POLICY.keys() == {".gitattributes", "picture.png"}
    fetched = client.fetch(NAME, env=env)
    assert content(fetched) == POLICY and origin(fetched) == Origin(NAME, commit)


def test_a_push_replaces_the_checkpoint_that_was_there(hub, client, tmp_path):
    files = {name: data for name, data in POLICY.items() if name != "model.safetensors"} | SHARDS
    hub.commit(NAME, files | {"results/a.json": b"{}"})
    client.ask("push", written(tmp_path / "policy", POLICY), NAME, token=OWNER)
    assert "deleting from org/policy what this checkpoint has not: model.safetensors.index.json" in client.log
    assert content(client.fetch(NAME)) == POLICY
    repository = hub.repository(NAME)
    assert "results/a.json" in repository.commits[repository.branches["main"]]


def test_a_push_to_a_branch_leaves_the_default_alone(hub, client, tmp_path):
    first = hub.commit(NAME, POLICY)
    folder = written(tmp_path / "policy", POLICY | {"stats.json": b"{}"})
    client.ask("push", folder, NAME, revision="trial", token=OWNER)
    assert hub.repository(NAME).branches["main"] == first
    assert (client.fetch(NAME, revision="trial") / "stats.json").read_bytes() == b"{}"


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (NAME, {}, "without a token: log in with `hf auth login`, or set HF_TOKEN"),
        (NAME, {"token": READER}, "your token may not write there (You don't have the rights to write"),
        ("others/new", {"token": OWNER}, "use one with write access for 'others'"),
        (NAME, {"token": "hf_expired"}, "your token is wrong or has expired"),
        (NAME, {"token": OWNER, "private": True}, "already exists and is public, but private=True was asked"),
        (NAME, {"token": OWNER, "env": {"HF_HUB_OFFLINE": "1"}}, "forbidden by HF_HUB_OFFLINE=1"),
        ("policy", {"token": OWNER}, "'policy' is neither an existing folder nor a Hub repository id"),
    ],
)
def test_a_push_that_is_not_taken(hub, client, tmp_path, name, options, said):
    before = hub.commit(NAME, POLICY)
    folder = written(tmp_path / "local", POLICY | {"stats.json": b"{}"})
    error = client.error("push", folder, name, **options)
    assert said in error and "hf_expired" not in error
    assert hub.repository(NAME).branches["main"] == before and ("model", "others/new") not in hub.repositories


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"pytorch_model.bin": b"anything"}, "pytorch_model.bin is a pickle"),
        ({"deep/optimizer.PT": b"anything"}, "optimizer.PT is a pickle"),
        ({"extra.dat": b"\x80\x04\x95"}, "extra.dat is a pickle"),
        ({"model.safetensors": POLICY["model.safetensors"][:-1]}, "model.safetensors is truncated"),
        ({"model.safetensors": None, "model.safetensors.index.json": b"{"}, "index.json is damaged"),
        (
            {
                "model.safetensors": None,
                "model.safetensors.index.json": SHARDS["model.safetensors.index.json"],
            },
            "model-1.safetensors, model-2",
        ),
        (SHARDS, "both model.safetensors and model.safetensors.index.json"),
        ({"stats.json": None}, "no complete checkpoint: stats.json is missing"),
        ({"config.json": None}, "no complete checkpoint: config.json is missing"),
    ],
)
def test_a_folder_that_is_not_fit_to_be_pushed(tmp_path, files, said):
    folder = written(tmp_path, {name: data for name, data in (POLICY | files).items() if data is not None})
    with pytest.raises(CheckpointError, match=said):
        push(folder, NAME, token=OWNER)


def test_a_torch_file_is_recognised_by_its_content(tmp_path):
    import torch

    folder = written(tmp_path, POLICY)
    torch.save({"a": torch.zeros(1)}, folder / "extra.dat")
    with pytest.raises(CheckpointError, match=r"extra\.dat is a pickle"):
        push(folder, NAME, token=OWNER)


def test_a_folder_that_is_not_there(tmp_path):
    (tmp_path / "policy").mkdir()
    with pytest.raises(CheckpointError, match=r"is no folder.* Did you mean the folder .*policy'"):
        push(tmp_path / "polcy", NAME, token=OWNER)

"""A Hugging Face Hub of one's own on 127.0.0.1: real HTTP, real commits, and faults on demand.

Speaks what huggingface_hub 1.x asks for: model information, tree, refs, `resolve` with ETag and Range, repository and
branch creation, preupload, Git-LFS batch and upload, ndjson commits. Answers errors with the Hub's own headers.

    with LoopbackHub() as hub:
        hub.commit("org/policy", {"config.json": b"{}"})
        ... a client with HF_ENDPOINT=hub.url ...
"""

import base64
import hashlib
import json
import os
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

OWNER, READER, STRANGER = "hf_owner", "hf_reader", "hf_stranger"
"""Tokens: one may write for `org`, one may read what is private or gated there, one is only known."""

Files = dict[str, bytes]


def client_environment(url: str, home: Path, **more: str) -> dict[str, str]:
    """The environment of a process whose Hub is at `url`: the tests' own, but that the Hub may be asked."""
    hidden = ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return {key: value for key, value in os.environ.items() if key not in hidden} | {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **more,
    }


@dataclass
class Repository:
    """Commits and the names that point to them."""

    kind: str = "model"
    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def resolve(self, revision: str) -> str | None:
        """Return the commit of a branch, a tag or a full hash."""
        return (self.branches | self.tags).get(revision) or (revision if revision in self.commits else None)

    def add(self, files: Files, branch: str, message: str) -> str:
        """Make `files` the content of `branch`."""
        self.messages.append(message)
        commit = hashlib.sha1(f"{len(self.messages)} {sorted(files)}".encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit


@dataclass
class Cut:
    """After `sent` bytes of a file the connection closes, is reset, or hangs."""

    sent: int
    how: str = "close"


class LoopbackHub:
    """The server; `requests` lists (method, path, Range) of everything that was asked."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.lfs: dict[str, bytes] = {}
        self.cuts: dict[str, list[Cut]] = {}  # file name → what happens to its next downloads
        self.down = False  # whether every answer is 503
        self.requests: list[tuple[str, str, str | None]] = []
        self.stopped = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def repository(self, name: str, kind: str = "model", **flags: bool) -> Repository:
        """Return a repository, made with a first commit like the Hub's when it does not exist."""
        if (kind, name) not in self.repositories:
            self.repositories[kind, name] = Repository(kind, **flags)
            self.repositories[kind, name].add(
                {".gitattributes": b"*.safetensors lfs\n"}, "main", "initial commit"
            )
        return self.repositories[kind, name]

    def commit(self, name: str, files: Files, branch: str = "main", **flags: bool) -> str:
        """Add files to a repository; returns the commit."""
        repository = self.repository(name, **flags)
        before = repository.commits[repository.branches[branch]]
        return repository.add(before | files, branch, "a commit")

    def gets(self, name: str) -> list[str | None]:
        """The Range of every download of a file, None for the whole."""
        return [how for method, path, how in self.requests if method == "GET" and path.endswith(f"/{name}")]


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for the client's delayed acknowledgement

    def log_message(self, *_: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # the client gave up, or was killed
            self.close_connection = True

    # ---- dispatch -----------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        self.body = self._read()
        parts = path.strip("/").split("/")
        if self.hub.down:
            return self._fail(503, None, "the Hub is down for maintenance")
        authorization = self.headers.get("authorization", "").removeprefix("Bearer ")
        self.token = authorization or None
        if self.token not in (None, OWNER, READER, STRANGER):
            return self._fail(401, None, "Invalid credentials in Authorization header")
        match parts:
            case ["api", "repos", "create"]:
                self._create()
            case ["api", "validate-yaml"]:
                self._json({"errors": [], "warnings": []})
            case ["api", ("models" | "datasets" | "spaces") as kind, org, name, *rest]:
                self._api(kind.removesuffix("s"), f"{org}/{name}", rest)
            case ["lfs", oid]:
                self._store(oid)
            case [org, name, "info", "lfs", "objects", "batch"]:
                self._batch(f"{org}/{name.removesuffix('.git')}")
            case [org, name, "resolve", revision, *file]:
                self._resolve(f"{org}/{name}", revision, "/".join(file))
            case _:
                self._fail(404, None, f"no such route: {path}")

    do_GET = do_HEAD = do_POST = do_PUT = _dispatch

    def _api(self, kind: str, name: str, rest: list[str]) -> None:
        repository = self._readable(kind, name)
        if repository is None:
            return None
        match rest:
            case [] | ["revision", _]:
                return self._information(repository, name, rest[1] if rest else "main")
            case ["tree", revision]:
                if commit := self._commit_of(repository, revision):
                    self._json([_entry(path, data) for path, data in repository.commits[commit].items()])
                return None
            case ["refs"]:
                return self._refs(repository)
        if not self._writable(name):
            return None
        match rest:
            case ["branch", branch]:
                if branch in repository.branches:
                    return self._fail(409, None, "Reference already exists")
                repository.branches[branch] = repository.branches["main"]
                self._json({})
            case ["preupload", revision]:
                if self._commit_of(repository, revision):
                    self._json({"files": [_mode(file["path"]) for file in json.loads(self.body)["files"]]})
            case ["commit", revision]:
                if self._commit_of(repository, revision):
                    self._commit(repository, name, revision)
            case _:
                self._fail(404, None, f"no such route: {rest}")

    # ---- reading ------------------------------------------------------------------------------------------------

    def _readable(self, kind: str, name: str) -> Repository | None:
        repository = self.hub.repositories.get((kind, name))
        if repository is not None and (not repository.private or self.token in (OWNER, READER)):
            return repository
        if self.token is None:  # the Hub does not say whether a private repository exists
            self._fail(401, "RepoNotFound", "Invalid username or password.")
        else:
            self._fail(404, "RepoNotFound", "Repository not found")
        return None

    def _commit_of(self, repository: Repository, revision: str) -> str | None:
        if (commit := repository.resolve(revision)) is None:
            self._fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _information(self, repository: Repository, name: str, revision: str) -> None:
        if commit := self._commit_of(repository, revision):
            siblings = [{"rfilename": file} for file in repository.commits[commit]]
            self._json({"id": name, "sha": commit, "siblings": siblings, "private": repository.private})

    def _refs(self, repository: Repository) -> None:
        refs = {"branches": repository.branches, "tags": repository.tags}
        listed = {
            key: [{"name": n, "ref": f"refs/{n}", "targetCommit": c} for n, c in names.items()]
            for key, names in refs.items()
        }
        self._json(listed | {"converts": []})

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repository = self._readable("model", name)
        if repository is None or (commit := self._commit_of(repository, revision)) is None:
            return
        if (
            repository.gated
            and self.token not in (OWNER, READER)
            and file not in ("README.md", ".gitattributes")
        ):
            return self._fail(
                401 if self.token is None else 403, "GatedRepo", f"Access to model {name} is restricted"
            )
        if file not in repository.commits[commit]:
            return self._fail(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        data = repository.commits[commit][file]
        entry = _entry(file, data)
        headers = {"ETag": f'"{_etag(entry)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        start = 0
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = None
        if self.command == "GET" and self.hub.cuts.get(file):
            cut = self.hub.cuts[file].pop(0)
        self._send(206 if wanted else 200, data[start:], headers, cut)

    # ---- writing ------------------------------------------------------------------------------------------------

    def _writable(self, name: str) -> bool:
        if self.token == OWNER and name.split("/")[0] == "org":
            return True
        self._fail(403, None, f'You don\'t have the rights to write to "{name}"')
        return False

    def _create(self) -> None:
        wanted = json.loads(self.body)
        name, kind = f"{wanted['organization']}/{wanted['name']}", wanted.get("type") or "model"
        if not self._writable(name):
            return
        url = {"url": f"{self.hub.url}/{name}", "name": name}
        if (kind, name) in self.hub.repositories:
            return self._json(url | {"error": f"You already created this {kind} repo"}, 409)
        self.hub.repository(name, kind, private=wanted.get("visibility") == "private")
        self._json(url)

    def _batch(self, name: str) -> None:
        if self._writable(name):
            objects = json.loads(self.body)["objects"]
            for wanted in objects:
                if wanted["oid"] not in self.hub.lfs:
                    wanted["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
            self._json({"transfer": "basic", "objects": objects})

    def _store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._fail(400, None, "the content is not what its hash says")
        self.hub.lfs[oid] = self.body
        self._json({})

    def _commit(self, repository: Repository, name: str, branch: str) -> None:
        files = dict(repository.commits[repository.branches[branch]])
        message = ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.lfs[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        commit = repository.add(files, branch, message)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})

    # ---- HTTP ---------------------------------------------------------------------------------------------------

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _fail(
        self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None
    ) -> None:
        told = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | (headers or {})
        self._send(
            status, json.dumps({"error": message}).encode(), told | {"Content-Type": "application/json"}
        )

    def _send(self, status: int, body: bytes, headers: dict[str, str], cut: Cut | None = None) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if cut is None else body[: cut.sent])
        if cut is not None:
            self._break(cut.how)

    def _break(self, how: str) -> None:
        self.wfile.flush()
        if how == "hang":
            self.hub.stopped.wait(60)
        if how == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True


def _is_lfs(path: str) -> bool:
    return path.endswith(".safetensors")


def _mode(path: str) -> dict[str, Any]:
    return {"path": path, "uploadMode": "lfs" if _is_lfs(path) else "regular", "shouldIgnore": False}


def _entry(path: str, data: bytes) -> dict[str, Any]:
    """One line of a tree: git's hash of a blob, and for LFS files the hash of the content."""
    entry = {
        "type": "file",
        "path": path,
        "size": len(data),
        "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
    }
    if _is_lfs(path):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def _etag(entry: dict[str, Any]) -> str:
    return entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]

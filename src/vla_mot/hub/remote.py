"""Checkpoints on the Hugging Face Hub: `fetch` brings one into the cache, `origin` says which one a folder holds.

What goes over the wire is huggingface_hub's business; here stand what is asked for and what its failures mean to a
person. What an interruption costs is that library's to say, too. Over HTTP (1.33): a connection that ends early is
taken up again with a Range request, from the last full 10 MiB; after a reset, or when the process dies, finished
files are kept in the cache and the unfinished one starts again. hf_xet, where it is installed, has its own ways.

Imports no torch: a name is resolved before anything heavy is needed.
"""

import errno
import json
import logging
import os
import re
import shutil
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import httpx
from huggingface_hub import HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from vla_mot.errors import CheckpointError, nearest

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
FILES = ("*.json", "*.safetensors", "README.md")
"""What a policy needs, at the top of a repository."""
TOKENIZER = "tokenizer"
"""The only folder that belongs to a policy: see `hub.tokenizer_files`."""
OWN_FILES = (*FILES, f"{TOKENIZER}/*")
"""All that is fetched of a policy, and that its manifest tells of."""
PICKLES = (".bin", ".ckpt", ".jit", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
"""What may run code when it is read: neither fetched nor pushed."""
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
FAILURES = (OSError, ValueError, RuntimeError, httpx.HTTPError)
"""What huggingface_hub raises; its own errors are OSErrors."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_COMMIT = re.compile("[0-9a-f]{40}")

log = logging.getLogger(__name__)


class Origin(NamedTuple):
    """Where a folder in the Hub cache came from: the repository and the full hash of its commit."""

    repo_id: str
    commit: str


def fetch(
    name: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the folder of a checkpoint: a local one as it is, or a Hub repository's, downloaded.

    name: an existing folder, or a repository id `org/name`; a folder wins.
    revision: branch, tag or full commit hash; None is the default branch. Only for a repository.
    cache_dir: None is huggingface_hub's own (`HF_HOME`). token: None is the one that is logged in.
    local_files_only: use the cache alone, as `HF_HUB_OFFLINE=1` does.

    Without a connection, what the cache holds for that revision is used and logged. Raises CheckpointError, which
    says what to do, when the name, the repository, the revision, the access, the network or the disk does not serve.
    """
    folder = _local(name)
    if str(name) and os.path.isdir(folder):
        if revision is None:
            return folder
        raise CheckpointError(
            f"{folder} is a local folder and has no revisions, but revision={revision!r} was given. Drop the "
            "revision; or, if the Hub repository of that name is meant, start from another working folder."
        )
    repo_id = repository_id(name)
    cache = _local(cache_dir or constants.HF_HUB_CACHE)
    offline = local_files_only or constants.HF_HUB_OFFLINE
    try:
        found = _snapshot(repo_id, revision, cache, token, offline=offline)
    except CheckpointError:
        raise
    except FAILURES as error:
        raise _explained(error, repo_id, revision, cache, token, offline=offline) from error
    _require_policy(found, repo_id, token, offline=offline)
    return found


def origin(folder: str | Path) -> Origin | None:
    """Say which repository and commit a folder in a Hub cache holds; None for any other folder."""
    match _local(folder).absolute().parts:
        case [*_, repository, "snapshots", commit] if _COMMIT.fullmatch(commit):
            kind, _, repo_id = repository.partition("--")
            return Origin(repo_id.replace("--", "/"), commit) if kind == "models" else None
    return None


# ---- fetching ---------------------------------------------------------------------------------------------------


def _snapshot(
    repo_id: str, revision: str | None, cache: Path, token: str | bool | None, *, offline: bool
) -> Path:
    """Download, or find in the cache. Raises what huggingface_hub raises."""

    def snapshot(local: bool) -> Path:
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                cache_dir=cache,
                token=token,
                local_files_only=local,
                allow_patterns=list(OWN_FILES),
                ignore_patterns=[*_folders_but(TOKENIZER), *(f"*{ending}" for ending in PICKLES)],
            )
        )

    if offline:
        return snapshot(True)
    if _COMMIT.fullmatch(revision or ""):  # a commit never changes: what is complete needs no question
        with suppress(LocalEntryNotFoundError):
            if not missing_files(held := snapshot(True)):
                return held
    try:
        # Asked beforehand because `snapshot_download` waits without limit, and falls back to the cache in silence.
        HfApi(token=token).model_info(repo_id, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except RevisionNotFoundError:
        raise
    except (HfHubHTTPError, httpx.TransportError) as error:
        try:
            held = snapshot(True)
        except LocalEntryNotFoundError:
            raise error from None
        if missing_files(held):
            raise
        log.warning("%s: using commit %s of %s from the cache", reason(error), held.name, repo_id)
        return held
    return snapshot(False)


def _folders_but(name: str) -> list[str]:
    """Patterns, as `fnmatch` reads them, of every file in a folder but those right in the folder `name`."""
    other = [f"{name[:place]}[!{letter}]*/*" for place, letter in enumerate(name)]
    shorter = [f"{name[:place]}/*" for place in range(1, len(name))]
    return [*other, *shorter, f"{name}?*/*", "*/*/*"]


def repository_id(name: str | Path) -> str:
    """Return `org/name`. Raises CheckpointError for anything else."""
    text = name.as_posix() if isinstance(name, Path) else str(name)
    if os.path.isfile(_local(text)):
        raise CheckpointError(f"{text} is a file; give the folder that holds {CONFIG} and the weights.")
    with suppress(HFValidationError):
        validate_repo_id(text)
        if text.count("/") == 1:
            return text
    raise CheckpointError(
        f"{text!r} is neither an existing folder nor a Hub repository id (org/name).{nearest_folder(text)}"
    )


def _local(name: str | Path) -> Path:
    """The path that a name would be. `os.path` never raises, whatever a person typed; `Path` does."""
    return Path(os.path.expanduser(name))


def nearest_folder(text: str) -> str:
    """Return ` Did you mean the folder …?` when a folder beside the one that `text` names is called alike."""
    wanted = _local(text)
    try:
        siblings = [entry.name for entry in wanted.parent.iterdir() if entry.is_dir()]
    except OSError:
        return ""
    match = get_close_matches(wanted.name, siblings, n=1)
    return f" Did you mean the folder {str(wanted.parent / match[0])!r}?" if match else ""


def missing_files(folder: Path) -> list[str]:
    """Name what a folder lacks of a configuration and of weights: one file, or every shard that an index names.

    Raises CheckpointError for a damaged index, and for one beside a single file of weights.
    """
    weights = [WEIGHTS]
    if (folder / INDEX).is_file():
        if (folder / WEIGHTS).is_file():
            raise CheckpointError(
                f"{folder} holds both {WEIGHTS} and {INDEX}: which weights are meant cannot be known. Remove what is "
                "left of an older checkpoint, or save it into a new folder."
            )
        weights = _shards(folder / INDEX)
    return [name for name in (CONFIG, *weights) if not (folder / name).is_file()]


def _shards(index: Path) -> list[str]:
    try:
        named = set(json.loads(index.read_text())["weight_map"].values())
        if not named or any(not isinstance(name, str) or Path(name).name != name for name in named):
            raise ValueError("weight_map must go from tensors to names of files")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is damaged ({error!r}); fetch or write it again.") from error
    return sorted(named)


def _require_policy(folder: Path, repo_id: str, token: str | bool | None, *, offline: bool) -> None:
    """Raise CheckpointError when a repository has not what a policy needs."""
    if not (missing := missing_files(folder)):
        return
    held = sorted(entry.name for entry in folder.iterdir())
    if not offline:
        with suppress(*FAILURES):
            held = HfApi(token=token).list_repo_files(repo_id, revision=folder.name)
    pickles = [name for name in held if name.endswith(PICKLES)]
    raise CheckpointError(
        f"{repo_id} at commit {folder.name[:12]} holds no complete policy: {', '.join(missing)} is missing; it has "
        f"{_listed(held)}."
        + (" It is not complete in the cache: fetch it once with a connection." if offline else "")
        + (f" {pickles[0]} is a pickle, which is never fetched: ask for safetensors." if pickles else "")
    )


def _explained(
    error: Exception,
    repo_id: str,
    revision: str | None,
    cache: Path,
    token: str | bool | None,
    *,
    offline: bool,
) -> CheckpointError:
    """Say in a person's words why a repository could not be fetched, and what to do."""
    at = f"{repo_id} at revision {revision!r}" if revision else repo_id
    hub, page = constants.ENDPOINT, f"{constants.ENDPOINT}/{repo_id}"
    if isinstance(error, LocalEntryNotFoundError) and not offline and isinstance(error.__cause__, FAILURES):
        error = error.__cause__
    match error:
        case GatedRepoError():
            known = "the account of your token has no access" if _token(token) else "no token was sent"
            text = (
                f"{repo_id} is gated, and {known}. Ask for access on {page}, then {LOG_IN} to that account's."
            )
        case RepositoryNotFoundError():
            text = (
                f"{hub} has no model {repo_id!r} that you may read: it does not exist, or it is private"
                f"{'' if _token(token) else ' and no token was sent'}.{_other_kind(repo_id, token)}"
                f"{nearest_folder(repo_id)} Check the name, or {LOG_IN} to one that may read it."
            )
        case RevisionNotFoundError():
            known_revisions = _revisions(repo_id, token)
            text = (
                f"{repo_id} has no revision {revision!r}.{nearest(str(revision), known_revisions)} Expected a "
                f"branch or tag ({_listed(known_revisions)}), or a full commit hash; see {page}/commits."
            )
        case LocalEntryNotFoundError() | OfflineModeIsEnabled():
            held = _cached_revisions(cache, repo_id)
            text = (
                f"{at} is not complete in the cache {cache} (it has {_listed(held) if held else 'nothing'} of that "
                "repository), and the network is forbidden (HF_HUB_OFFLINE=1 or local_files_only)."
                f"{nearest_folder(repo_id)} Fetch it once with a connection."
            )
        case HfHubHTTPError() if error.response.status_code == 401:
            text = (
                f"{hub} rejected your token when asked for {at}: it is wrong or has expired; {LOG_IN} again."
            )
        case HfHubHTTPError():
            text = (
                f"{hub} answered {error.response.status_code} when asked for {at}: "
                f"{error.server_message or 'no reason given'}. If it is busy or down, try again later."
            )
        case httpx.HTTPError():
            text = (
                f"the connection to {hub} failed while fetching {at} ({reason(error)}), and the cache {cache} "
                f"does not hold all of it.{nearest_folder(repo_id)} Check network and proxy (HTTPS_PROXY, "
                "HF_ENDPOINT) and try again: files that are finished are kept."
            )
        case OSError() if error.errno in _NO_ROOM:
            text = (
                f"no room for {at} in the cache {cache} ({_free(cache)} free; {reason(error)}). Make room, or name "
                "another disk with HF_HOME or cache_dir; then try again: files that are finished are kept."
            )
        case _:
            text = f"{at} could not be fetched into {cache}: {reason(error)}. Try again, or see {page}."
    return CheckpointError(text)


def _other_kind(repo_id: str, token: str | bool | None) -> str:
    """Return a sentence when the name is a dataset's or a space's."""
    for kind in ("dataset", "space"):
        with suppress(*FAILURES):
            if HfApi(token=token).repo_exists(repo_id, repo_type=kind):
                return f" There is a {kind} of that name; a policy is a model."
    return ""


def _revisions(repo_id: str, token: str | bool | None) -> list[str]:
    with suppress(*FAILURES):
        refs = HfApi(token=token).list_repo_refs(repo_id)
        return [ref.name for ref in (*refs.branches, *refs.tags)]
    return []


def _cached_revisions(cache: Path, repo_id: str) -> list[str]:
    repository = cache / f"models--{repo_id.replace('/', '--')}"
    refs = sorted(
        p.relative_to(repository / "refs").as_posix() for p in repository.glob("refs/**/*") if p.is_file()
    )
    return refs + sorted(p.name[:12] for p in repository.glob("snapshots/*"))


# ---- words ------------------------------------------------------------------------------------------------------


def _token(token: str | bool | None) -> bool:
    return token is not False and (isinstance(token, str) or get_token() is not None)


def _listed(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more or "nothing"


def reason(error: Exception) -> str:
    """The first line of what an exception says, with its kind."""
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {first.rstrip('.')}"


def _free(folder: Path) -> str:
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return f"{shutil.disk_usage(there).free / 1e9:.1f} GB"

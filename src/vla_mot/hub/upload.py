"""`push`: a finished checkpoint folder becomes one commit of a Hub repository."""

import logging
import re
import zipfile
from collections.abc import Collection
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

import httpx
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open

from vla_mot.errors import CheckpointError
from vla_mot.hub.remote import (
    FAILURES,
    FILES,
    LOG_IN,
    PICKLES,
    TOKENIZER,
    missing_files,
    nearest_folder,
    reason,
    repository_id,
)

STATISTICS, CARD = "stats.json", "README.md"
MESSAGE = "Upload a vla_mot policy"
_BRANCH = re.compile(r"(?!.*(\.\.|//|\.lock$|[/.]$))[A-Za-z0-9_][\w./+-]*", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{40}")

log = logging.getLogger(__name__)


def push(
    folder: str | Path,
    repo_id: str,
    *,
    card: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str = MESSAGE,
    token: str | None = None,
) -> str:
    """Upload a complete checkpoint folder as a model repository; returns the commit's URL.

    repo_id: `org/name`; made when it does not exist. card: what becomes its README.md; by default the folder's.
    private: whether it is; None keeps what it is, or the account's default. revision: a branch, made when it does not
    exist. message: the commit's first line. token: needs write access; None is the one that is logged in. Hidden files
    are left out; weights and JSON files that an earlier upload left at the top of the repository are deleted, so that
    the repository holds this checkpoint alone.

    Raises CheckpointError, before anything is sent, when a file is missing or truncated, the folder holds a pickle or
    a name does not fit; and when the Hub does not take it.
    """
    path = Path(folder).expanduser()
    _require_complete(path, card)
    repo_id = require_target(repo_id, revision=revision, message=message, token=token)
    files: dict[str, Path | bytes] = {file.relative_to(path).as_posix(): file for file in _uploaded(path)}
    if card is not None:
        files[CARD] = card.encode()
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        _require_visibility(api, repo_id, private)
        if revision not in (None, constants.DEFAULT_REVISION):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationDelete(name) for name in _left_over(api, repo_id, revision, files)),
                *(CommitOperationAdd(name, content) for name, content in sorted(files.items())),
            ],
            commit_message=message,
            revision=revision,
        )
    except FAILURES as error:
        raise _refused(error, repo_id, path) from error
    return str(commit.commit_url)


def require_target(
    repo_id: str, *, revision: str | None = None, message: str = MESSAGE, token: str | None = None
) -> str:
    """Return the repository's id. Raises CheckpointError when nothing could be uploaded there; sends nothing."""
    repo_id = repository_id(repo_id)
    if not message.strip():
        raise CheckpointError("message: expected the commit's first line, got an empty one.")
    if revision is not None and (_COMMIT.fullmatch(revision) or not _BRANCH.fullmatch(revision)):
        raise CheckpointError(
            f"revision {revision!r} is no branch to upload to: expected a name such as main or trial-2."
        )
    if token is None and get_token() is None:
        raise CheckpointError(
            f"nothing can be uploaded to {repo_id} without a token: {LOG_IN} to a token with write access "
            f"({constants.ENDPOINT}/settings/tokens)."
        )
    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(
            f"nothing can be uploaded to {repo_id}: the network is forbidden by HF_HUB_OFFLINE=1; unset it to upload."
        )
    return repo_id


def _uploaded(folder: Path) -> list[Path]:
    """Every file but the hidden ones."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(
        file for file in files if not any(p.startswith(".") for p in file.relative_to(folder).parts)
    )


def _require_complete(folder: Path, card: str | None) -> None:
    """Raise CheckpointError for a folder that misses a file, holds a truncated one, or holds a pickle."""
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is no folder, so there is nothing to upload.{nearest_folder(str(folder))}"
        )
    missing = missing_files(folder) + [name for name in (STATISTICS,) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} is no complete checkpoint: {', '.join(missing)} is missing. Upload what `save_pretrained` "
            "wrote, or the pretrained_model folder of a run's checkpoint."
        )
    for file in _uploaded(folder):
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="np"):
                    pass
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{file} is truncated or damaged ({error}); write it again.") from error
        elif _is_pickle(file):
            raise CheckpointError(
                f"{file} is a pickle, which may run code on the machine of whoever reads it; nothing was uploaded. "
                "Remove it from the folder, or save what it holds as safetensors or JSON."
            )
    if card is None and not (folder / CARD).is_file():
        log.warning("%s has no %s: the repository will have no model card", folder, CARD)
    if card is not None and (folder / CARD).is_file():
        log.warning("%s is not uploaded: a new model card takes its place", folder / CARD)


def _is_pickle(file: Path) -> bool:
    """Whether a file is a pickle by its name or, whatever it is called, by its first bytes."""
    if file.suffix.lower() in PICKLES:
        return True
    with file.open("rb") as stream:
        head = stream.read(4)
    if head == b"PK\x03\x04":  # torch.save and TorchScript write zip archives around pickles
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    return head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def _require_visibility(api: HfApi, repo_id: str, private: bool | None) -> None:
    """Raise CheckpointError when an existing repository is not as private as was asked: create_repo changes nothing."""
    if private is not None and bool(api.model_info(repo_id).private) != private:
        raise CheckpointError(
            f"{repo_id} already exists and is {'public' if private else 'private'}, but private={private} was asked; "
            f"nothing was uploaded. Change it on {constants.ENDPOINT}/{repo_id}/settings, or choose another name."
        )


def _left_over(api: HfApi, repo_id: str, revision: str | None, files: Collection[str]) -> list[str]:
    """Weights and JSON files at the top of the repository that are not uploaded now: an earlier checkpoint's."""
    there = api.list_repo_files(repo_id, revision=revision)
    top = [name for name in there if "/" not in name and name != CARD]
    stale = [name for name in top if any(fnmatch(name, pattern) for pattern in FILES)]
    stale += [name for name in there if name.startswith(f"{TOKENIZER}/")]
    stale = [name for name in stale if name not in files]
    if stale:
        log.warning("deleting from %s what this checkpoint has not: %s", repo_id, ", ".join(stale))
    return stale


def _refused(error: Exception, repo_id: str, folder: Path) -> CheckpointError:
    """Say in a person's words why an upload failed, and what to do."""
    if isinstance(error, CheckpointError):
        return error
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, FAILURES):
        error = error.__cause__  # huggingface_hub wraps what went wrong with one file
    organization, hub = repo_id.split("/")[0], constants.ENDPOINT
    match error:
        case RepositoryNotFoundError():
            text = (
                f"your token may not see it: check the name, or use one that may write for {organization!r}"
            )
        case HfHubHTTPError() if error.response.status_code == 401:
            text = f"your token is wrong or has expired: {LOG_IN} to one with write access"
        case HfHubHTTPError() if error.response.status_code == 403:
            text = (
                f"your token may not write there ({error.server_message or 'forbidden'}): use one with write access "
                f"for {organization!r} ({hub}/settings/tokens), or another organization"
            )
        case HfHubHTTPError() if error.response.status_code == 409:
            text = f"the name is taken ({error.server_message or 'conflict'}): choose another one"
        case HfHubHTTPError():
            text = f"{hub} answered {error.response.status_code}: {error.server_message or 'no reason given'}"
        case httpx.HTTPError():
            text = f"the connection to {hub} failed ({reason(error)}): try again, what has arrived is not sent twice"
        case _:
            text = reason(error)
    return CheckpointError(f"{folder} could not be uploaded to {repo_id}: {text}.")

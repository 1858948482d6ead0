"""`push`: a finished checkpoint folder becomes one commit of a Hub repository."""

import logging
import zipfile
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

import httpx
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open

from vla_mot.errors import CheckpointError
from vla_mot.hub.remote import (
    FAILURES,
    FILES,
    LOG_IN,
    PICKLES,
    missing_files,
    nearest_folder,
    reason,
    repository_id,
)

STATISTICS, CARD = "stats.json", "README.md"

log = logging.getLogger(__name__)


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Upload a vla_mot policy",
    token: str | None = None,
) -> str:
    """Upload a complete checkpoint folder as a model repository; returns the commit's URL.

    repo_id: `org/name`; made when it does not exist. private: whether it is; None keeps what it is, or the account's
    default. revision: a branch, made when it does not exist. message: the commit's first line. token: needs write
    access; None is the one that is logged in. Hidden files are left out; weights and JSON files that an earlier
    upload left at the top of the repository are deleted, so that the repository holds this checkpoint alone.

    Raises CheckpointError, before anything is sent, when a file is missing or truncated or the folder holds a
    pickle; and when the Hub does not take it.
    """
    path = Path(folder).expanduser()
    _require_complete(path)
    repo_id = repository_id(repo_id)
    if token is None and get_token() is None:
        raise CheckpointError(
            f"{path} cannot be uploaded to {repo_id} without a token: {LOG_IN} to a token with write access "
            f"({constants.ENDPOINT}/settings/tokens)."
        )
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        _require_visibility(api, repo_id, private)
        if revision not in (None, constants.DEFAULT_REVISION):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=path,
            revision=revision,
            commit_message=message,
            ignore_patterns=[".*", "*/.*"],
            delete_patterns=_left_over(api, repo_id, revision, path),
        )
    except FAILURES as error:
        raise _refused(error, repo_id, path) from error
    return str(commit.commit_url)


def _require_complete(folder: Path) -> None:
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
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if any(part.startswith(".") for part in file.relative_to(folder).parts):
            continue  # hidden: not uploaded
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
    if not (folder / CARD).is_file():
        log.warning("%s has no %s: the repository will have no model card", folder, CARD)


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


def _left_over(api: HfApi, repo_id: str, revision: str | None, folder: Path) -> list[str] | None:
    """Weights and JSON files at the top of the repository that the folder has not: an earlier checkpoint's."""
    there = api.list_repo_files(repo_id, revision=revision)
    stale = [n for n in there if "/" not in n and n != CARD and not (folder / n).exists()]
    stale = [name for name in stale if any(fnmatch(name, pattern) for pattern in FILES)]
    if stale:
        log.warning("deleting from %s what this checkpoint has not: %s", repo_id, ", ".join(stale))
    return stale or None


def _refused(error: Exception, repo_id: str, folder: Path) -> CheckpointError:
    """Say in a person's words why an upload failed, and what to do."""
    if isinstance(error, CheckpointError):
        return error
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, FAILURES):
        error = error.__cause__  # huggingface_hub wraps what went wrong with one file
    organization, hub = repo_id.split("/")[0], constants.ENDPOINT
    match error:
        case OfflineModeIsEnabled():
            text = "the network is forbidden by HF_HUB_OFFLINE=1; unset it to upload"
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

"""What every test shares: no network, one thread, no window, an empty Hugging Face cache, the golden files."""

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Must stand before torch, transformers, lerobot or pygame are imported; subprocesses inherit it.
_OWN_CACHE = None
if "VLA_MOT_TEST_CACHE" not in os.environ:  # pytest-xdist's workers inherit the one of their parent
    _OWN_CACHE = os.environ["VLA_MOT_TEST_CACHE"] = tempfile.mkdtemp(prefix="vla-mot-tests-")
_CLOSED = "http://127.0.0.1:9"
os.environ.update(
    HF_HOME=os.environ["VLA_MOT_TEST_CACHE"],  # a file in a developer's cache must not hide a download
    XDG_CACHE_HOME=os.environ["VLA_MOT_TEST_CACHE"],  # nor may a test leave anything in it
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    WANDB_MODE="disabled",
    TOKENIZERS_PARALLELISM="false",
    SDL_VIDEODRIVER="dummy",
    SDL_AUDIODRIVER="dummy",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    # In this process: the pool of the compiler outlives signals that tests send, and then its end is waited for.
    TORCHINDUCTOR_COMPILE_THREADS="1",
    # Subprocesses are out of reach of `_guard_sockets`; their HTTP clients at least run into a closed port.
    **dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"), _CLOSED
    ),
    **dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1,::1"),
)

import pytest  # noqa: E402
import torch  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]


class NetworkUsedError(RuntimeError):
    """A test reached for the network. Not an `OSError`, so that no library takes it for a lost connection."""


def _refuse_remote(host: object) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    local = name is None or name in ("", "localhost", "::1", "0.0.0.0", "::", socket.gethostname())
    if not local and not str(name).startswith("127."):
        raise NetworkUsedError(f"tests run offline, but something tried to reach {name!r}")


def _guard_sockets(patch: pytest.MonkeyPatch) -> None:
    """Make `connect` and name look-ups of this process raise for every host but this one."""
    connect, connect_ex, look_up = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def checked(original):
        def call(self, address):
            if self.family in (socket.AF_INET, socket.AF_INET6):
                _refuse_remote(address[0])
            return original(self, address)

        return call

    def checked_look_up(host, *args, **kwargs):
        _refuse_remote(host)
        return look_up(host, *args, **kwargs)

    patch.setattr(socket.socket, "connect", checked(connect))
    patch.setattr(socket.socket, "connect_ex", checked(connect_ex))
    patch.setattr(socket, "getaddrinfo", checked_look_up)


def pytest_unconfigure() -> None:
    if _OWN_CACHE is not None:
        shutil.rmtree(_OWN_CACHE, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _offline_on_one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        _guard_sockets(patch)
        yield


@pytest.fixture(autouse=True)
def _log_as_a_library() -> Iterator[None]:
    """A command that ran in this process made the library's log its own; the next test finds it as it was."""
    logger = logging.getLogger("vla_mot")
    yield
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def three_datasets(tmp_path_factory) -> Path:
    """A folder of three recordings, three short episodes each: `conveyor`, `conveyor_fingers` (other state, action
    and camera) and `conveyor_video` (pictures and instructions alone). Nothing may change them; parallel workers share
    them."""
    from filelock import FileLock

    from tests.three_datasets import record_three

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers
    with FileLock(folder / "three_datasets.lock"):
        if not (folder / "three_datasets").exists():
            record_three(folder / "three_datasets")
    return folder / "three_datasets"


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of golden files: `$VLA_MOT_GOLDENS`, or `shared/goldens` beside the checkout."""
    folder = Path(os.environ.get("VLA_MOT_GOLDENS") or REPOSITORY.parent / "shared" / "goldens")
    if folder.is_dir():
        return folder
    reason = f"no golden files in {folder}; set VLA_MOT_GOLDENS to their folder"
    if os.environ.get("VLA_MOT_REQUIRE_GOLDENS") == "1":
        pytest.fail(f"{reason} (VLA_MOT_REQUIRE_GOLDENS=1 makes this a failure)")
    pytest.skip(reason)

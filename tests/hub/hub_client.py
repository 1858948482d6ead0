"""Calls `fetch` and `push` in processes that start fresh, as a user's do, but quickly.

huggingface_hub reads where the Hub is, whether it may be asked and who asks when it is imported. So every request gets
a process of its own: forked from one that has imported what huggingface_hub needs, but not yet huggingface_hub.

    python hub_client.py '["fetch", ["org/policy"], {}]'    one request, in this very process
    python hub_client.py                                    requests as JSON lines; answers with exit codes
"""

import json
import logging
import os
import resource
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any


def answer(call: str, arguments: list[str], options: dict[str, Any]) -> None:
    """Print what the call returns or says is wrong, and which heavy libraries it took."""
    logging.basicConfig(level="WARNING", format="%(message)s")
    from vla_mot.errors import CheckpointError
    from vla_mot.hub.remote import fetch
    from vla_mot.hub.upload import push

    try:
        said = {"result": str({"fetch": fetch, "push": push}[call](*arguments, **options))}
    except CheckpointError as error:
        said = {"error": str(error)}
    heavy = sorted({"torch", "transformers", "diffusers", "lerobot"} & set(sys.modules))
    print(json.dumps(said | {"heavy": heavy}), flush=True)


def serve() -> None:
    """Answer requests from stdin until it ends."""
    import filelock, fsspec, httpx, numpy, packaging.version, rich, safetensors.numpy, tqdm.auto, typer, yaml  # noqa: E401, F401, I001

    assert "huggingface_hub" not in sys.modules, "it would have read the environment already"
    for line in sys.stdin:
        request = json.loads(line)
        if (child := os.fork()) == 0:
            _be_a_process_of_its_own(request)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _be_a_process_of_its_own(request: dict[str, Any]) -> None:
    for number, path in ((1, request["out"]), (2, request["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(request["environment"])
    if limit := request["limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        answer(*request["task"])
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


class Server:
    """The process that is forked from, seen from the tests."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, task: list[Any], environment: dict[str, str], limit: int, folder: Path) -> tuple[dict, str]:
        """Return the answer and what was logged. limit: bytes that a file may have; 0: any number."""
        assert self._process.stdin is not None and self._process.stdout is not None
        out, err = folder / "out.txt", folder / "err.txt"
        request = {"task": task, "environment": environment, "limit": limit, "out": str(out), "err": str(err)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code = self._process.stdout.readline()
        assert code == "0\n", f"{code}{err.read_text()}"
        return json.loads(out.read_text()), err.read_text()

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=60)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        answer(*json.loads(sys.argv[1]))
    else:
        serve()

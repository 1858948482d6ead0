"""The formats that a program is written in, and how one is opened again.

| format | file | runs with |
|---|---|---|
| `torch_export` | `<stage>.pt2` | torch: `torch.export.load` |
| `aoti` | `<stage>.pt2` | torch, compiled for this kind of machine: `torch._inductor.aoti_load_package` |
| `onnx` | `<stage>.onnx`, and `<stage>.onnx.data` for weights beside it | any ONNX runtime with operator set 18 |

Opening a `.pt2` may run code that lies in it: whoever opens one trusts whoever wrote it.
"""

import importlib.util
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export import ExportedProgram

from vla_mot.errors import ConfigError
from vla_mot.infer.export.stages import Stage

Format = Literal["torch_export", "onnx", "aoti"]
SUFFIXES: dict[Format, str] = {"torch_export": ".pt2", "onnx": ".onnx", "aoti": ".pt2"}
OPSET = 18  # of ONNX: the first in which resizing knows antialiasing
Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Tensors in the order of a stage's inputs → tensors in the order of its outputs."""
_COMPILER = "clang++" if sys.platform == "darwin" else "g++"  # torch's choice, where CXX names none
_WRITE_ONNX, _RUN_ONNX = ("onnx", "onnxscript"), ("onnxruntime",)


def require_writable(format: Format) -> None:
    """Raise ConfigError unless what writes this format is installed."""
    if format == "onnx":
        _require(_WRITE_ONNX)
    if format == "aoti" and shutil.which(compiler := os.environ.get("CXX", _COMPILER)) is None:
        raise ConfigError(f"format aoti needs a C++ compiler, and {compiler!r} is none here; set CXX to one.")


def can_open(format: Format) -> bool:
    """Whether what runs this format is installed."""
    return format != "onnx" or not _missing(_RUN_ONNX)


def write_program(
    format: Format, program: ExportedProgram, stage: Stage, path: Path, *, external_data: bool | None = None
) -> None:
    """Write one program. external_data: ONNX weights in a file of their own; None: where they are larger than 2 GB.

    Raises ConfigError for a computation that ONNX cannot express.
    """
    with _quiet():
        if format == "onnx":
            _write_onnx(program, stage, path, external_data)
        elif format == "aoti":
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        else:
            torch.export.save(program, path)


def open_program(format: Format, path: Path) -> Run:
    """Open one program; only those of `torch_export` carry gradients.

    Raises ConfigError where what runs it is not installed.
    """
    if format == "onnx":
        _require(_RUN_ONNX)
        return _open_onnx(path)
    called: Any
    with _quiet():
        called = (
            torch._inductor.aoti_load_package(str(path))
            if format == "aoti"
            else torch.export.load(path).module()
        )
    return lambda given: tuple(called(*given))


def _write_onnx(program: ExportedProgram, stage: Stage, path: Path, external_data: bool | None) -> None:
    try:
        written = torch.onnx.export(
            program,
            input_names=stage.inputs,
            output_names=stage.outputs,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise ConfigError(
            f"{path.stem} cannot be written as ONNX: {reason}. Choose another format."
        ) from error
    assert written is not None, "torch.onnx.export gives a program where no file is named"
    domains = {domain for domain in written.model.opset_imports if domain}
    assert not domains, f"operators that are not ONNX's own: {domains}"
    written.save(path, external_data=external_data)


def _open_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(given: Sequence[Tensor]) -> Sequence[Tensor]:
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, given, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, arrays)]

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says about itself: its own tree specs, buffers that it reads weights from."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        yield


def _missing(packages: Sequence[str]) -> list[str]:
    return [name for name in packages if importlib.util.find_spec(name) is None]


def _require(packages: Sequence[str]) -> None:
    if missing := _missing(packages):
        raise ConfigError(
            f"format onnx needs {' and '.join(missing)}, not installed here: pip install 'vla-mot[export]'."
        )

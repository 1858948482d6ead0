"""Tensors out of a TorchScript archive (`*.jit`, `*.pt` of `torch.jit.save`), without running anything in it.

Such an archive is a zip: `<name>/data.pkl` is a pickle of the module tree, `<name>/data/<key>` are its storages,
neither of them compressed, and `<name>/code/` is a program. The program is never read. The pickle is interpreted by
a loop that knows only the opcodes which torch's own writer uses, and builds only inert records; tensors are made
from them afterwards, when every number was checked. Archives come from strangers: whatever does not fit ends in a
CheckpointError.

Source: torch/csrc/jit/serialization/pickler.cpp writes, and torch/_utils.py rebuilds, what is understood here.
"""

import io
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from vla_mot.errors import CheckpointError

MAX_PICKLE_BYTES = 16 * 2**20  # the module tree of a network with a thousand tensors takes about 200 kB
MAX_DEPTH, MAX_MODULES = 100, 100_000
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_OPCODES = """PROTO STOP MARK GLOBAL NEWOBJ REDUCE BUILD BINPERSID NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1
BINFLOAT BINUNICODE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS
BINPUT LONG_BINPUT BINGET LONG_BINGET"""
# What reading a damaged or forged zip can raise: a lying header is found as any of these.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    OverflowError,
)


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Every tensor that a module of the archive holds as an attribute, by its dotted name, on the CPU.

    A tensor has the dtype that was stored. Raises CheckpointError when the archive is missing, truncated, compressed
    or altered, when its pickle asks for anything but modules and tensors, or when a tensor leaves its storage.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; a TorchScript archive was expected there.")
    try:
        with zipfile.ZipFile(path) as file:
            archive = _Archive(path, file)
            return {name: archive.tensor(name, record) for name, record in _walk(path, archive.module())}
    except CheckpointError:
        raise
    except _ZIP_ERRORS as error:
        size = path.stat().st_size
        raise CheckpointError(
            f"{path} ({size} bytes) is truncated or no TorchScript archive ({error}); fetch it again."
        ) from error


class _Module:
    """A scripted module: nothing but its attributes."""

    def __init__(self, *_: Any) -> None:
        self.attributes: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str
    count: int


@dataclass(frozen=True)
class _TensorRecord:
    """The arguments of `torch._utils._rebuild_tensor_v2`."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


class _Archive:
    """An opened archive whose directory was found plausible."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path, self.file = path, file
        self.entries = {info.filename: info for info in file.infolist()}
        self.size, self.copied = path.stat().st_size, 0
        total = sum(info.compress_size for info in file.infolist())
        if len(self.entries) != len(file.infolist()):
            raise self.error("names an entry twice")
        if total > self.size:
            raise self.error(f"claims to hold {total} bytes in a file of {self.size}")
        roots = [name.removesuffix("/data.pkl") for name in self.entries if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise self.error(f"holds {len(roots)} data.pkl; a TorchScript archive holds one")
        self.root = roots[0]
        if self._bytes("byteorder", optional=True) == b"big":
            raise self.error("was written on a big-endian machine; save it again on a little-endian one")
        self.storages: dict[_Storage, Tensor] = {}

    def error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} {what}.")

    def module(self) -> _Module:
        """The module tree."""
        if self.entries[f"{self.root}/data.pkl"].file_size > MAX_PICKLE_BYTES:
            raise self.error(f"holds a data.pkl of more than {MAX_PICKLE_BYTES} bytes")
        try:
            tree = _Unpickler(self.path, bytes(self._bytes("data.pkl"))).load()
        except CheckpointError:
            raise
        except Exception as error:  # a forged pickle fails in any way that the loop can
            raise self.error(f"holds a damaged data.pkl ({type(error).__name__}: {error})") from error
        if not isinstance(tree, _Module):
            raise self.error(f"holds a {type(tree).__name__} instead of a scripted module")
        return tree

    def tensor(self, name: str, record: _TensorRecord) -> Tensor:
        """Raises CheckpointError naming the tensor when it does not lie inside its storage."""
        storage, offset, size, stride = record.storage, record.offset, record.size, record.stride
        if not (isinstance(storage, _Storage) and _are_counts((offset,))):
            raise self.error(f"describes {name} by something else than a storage and an offset")
        if not (_are_counts(size) and _are_counts(stride) and len(size) == len(stride)):
            raise self.error(f"describes {name} by sizes and strides of which some are no counts")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if math.prod(size) > storage.count or (math.prod(size) and last >= storage.count):
            raise self.error(
                f"says {name} has shape {size}, strides {stride} and offset {offset}, which is more than "
                f"the {storage.count} numbers of its storage {storage.key!r}"
            )
        view = self._storage(name, storage).as_strided(size, stride, offset)
        if view.is_contiguous():
            return view
        self.copied += view.nbytes
        if self.copied > self.size:
            raise self.error(f"has views of the same storages that would take more than {self.copied} bytes")
        return view.contiguous()

    def _storage(self, name: str, storage: _Storage) -> Tensor:
        if storage not in self.storages:
            data = self._bytes(f"data/{storage.key}")
            expected = storage.count * storage.dtype.itemsize
            if len(data) != expected:
                raise self.error(f"holds {len(data)} bytes for {name}, whose {storage} needs {expected}")
            empty = torch.empty(0, dtype=storage.dtype)
            self.storages[storage] = torch.frombuffer(data, dtype=storage.dtype) if data else empty
        return self.storages[storage]

    def _bytes(self, name: str, optional: bool = False) -> bytearray:
        info = self.entries.get(f"{self.root}/{name}")
        if info is None:
            if optional:
                return bytearray()
            raise self.error(f"lacks its entry {name!r}; fetch it again")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise self.error(f"compresses its entry {name!r}; torch.jit.save stores it as it is")
        data = bytearray(info.file_size)
        with self.file.open(info) as entry:  # checks the CRC at the end
            filled = 0
            while part := entry.read(2**24):
                data[filled : filled + len(part)] = part
                filled += len(part)
            if filled != info.file_size:
                raise self.error(f"does not hold the {len(data)} bytes that it claims for {name!r}")
        return data


def _are_counts(values: Any) -> bool:
    """Whether it is a tuple of at most 32 whole numbers that a size, stride or offset could be."""
    return (
        isinstance(values, tuple)
        and len(values) <= 32
        and all(type(value) is int and 0 <= value < 2**62 for value in values)
    )


def _walk(path: Path, tree: _Module) -> Iterator[tuple[str, _TensorRecord]]:
    """The tensors of a module and of those inside it, depth first, in their stored order."""
    pending: list[tuple[tuple[str, ...], _Module]] = [((), tree)]
    visited = 0
    while pending:
        place, module = pending.pop()
        visited += 1
        if len(place) > MAX_DEPTH or visited > MAX_MODULES:
            raise CheckpointError(f"{path} nests its modules without end, at {'.'.join(place[:5])!r}.")
        attributes = module.attributes
        if not isinstance(attributes, dict) or not all(isinstance(name, str) for name in attributes):
            raise CheckpointError(f"{path} keeps no named attributes for module {'.'.join(place)!r}.")
        inner = []
        for name, value in attributes.items():
            if isinstance(value, _TensorRecord):
                yield ".".join((*place, name)), value
            elif isinstance(value, _Module):
                inner.append(((*place, name), value))
        pending += reversed(inner)


_PLAIN: dict[str, Callable[[Any], None]] = {
    name: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _OPCODES.split()
}


class _Opcodes(dict[int, Callable[..., None]]):
    def __missing__(self, code: int) -> Callable[..., None]:
        raise ValueError(f"opcode {code:#04x}, which torch.jit.save never writes")


class _Unpickler(pickle._Unpickler):
    """The interpreter in Python, because the one in C cannot be given a list of opcodes, and allocates what a forged
    memo index asks for."""

    stack: list[Any]
    dispatch = _Opcodes((getattr(pickle, name)[0], run) for name, run in _PLAIN.items())

    def __init__(self, path: Path, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) in _GLOBALS:
            return _GLOBALS[module, name]
        raise CheckpointError(
            f"{self._path} asks for {module}.{name}, which is neither a scripted module nor a tensor; "
            "it was refused and nothing was run. Do not open this file otherwise unless you trust its author."
        )

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), str(), int(count)) if _are_counts((count,)):
                return _Storage(dtype, key, count)
        raise CheckpointError(f"{self._path} refers to something outside its pickle that is no storage.")

    # Whatever is called or changed is one of ours; without these checks a file could alter them for the next one.

    def _reduce(self) -> None:
        self._require(isinstance(self.stack[-2], FunctionType), "calls a value")
        _PLAIN["REDUCE"](self)

    def _new(self) -> None:
        self._require(self.stack[-2] is _Module, "makes an instance of a value")
        _PLAIN["NEWOBJ"](self)

    def _build(self) -> None:
        self._require(isinstance(self.stack[-2], _Module), "sets attributes of something that is no module")
        _PLAIN["BUILD"](self)

    def _set_item(self) -> None:
        self._check_keys(self.stack[-2:-1])
        _PLAIN["SETITEM"](self)

    def _set_items(self) -> None:
        self._check_keys(self.stack[::2])
        _PLAIN["SETITEMS"](self)

    def _check_keys(self, keys: list[Any]) -> None:
        # The hash of a tuple that is nested deep enough overflows the stack of the interpreter.
        self._require(all(isinstance(key, str | int | float) for key in keys), "has a key of a strange type")

    def _require(self, fits: bool, what: str) -> None:
        if not fits:
            raise CheckpointError(f"{self._path} {what}, which torch.jit.save never writes; it was refused.")

    dispatch[pickle.REDUCE[0]] = _reduce
    dispatch[pickle.NEWOBJ[0]] = _new
    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.SETITEM[0]] = _set_item
    dispatch[pickle.SETITEMS[0]] = _set_items


def _rebuild_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, _requires_grad: Any, _hooks: Any, metadata: Any = None
) -> _TensorRecord:
    if metadata:
        raise ValueError(f"a tensor is a conjugated or negated view ({metadata}); save a plain one")
    return _TensorRecord(storage, offset, size, stride)


def _first(value: Any, *_type: Any) -> Any:
    return value


def _nothing(*_: Any) -> None:
    return None


_GLOBALS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("collections", "OrderedDict"): _nothing,  # a tensor's backward hooks
    ("torch", "device"): _nothing,
    ("torch.jit._pickle", "restore_type_tag"): _first,
    **{
        ("torch.jit._pickle", f"build_{kind}"): _first
        for kind in ("intlist", "tensorlist", "doublelist", "boollist", "tensor_from_id")
    },
}

"""Messages as bytes: msgpack, with numpy arrays and scalars as openpi's client packs them.

    array   {b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [50, 7]}
    scalar  {b"__npgeneric__": True, b"data": 1.5, b"dtype": "<f4"}

A message is hostile until it is read. msgpack holds lengths against what really came before it allocates; everything
that its own limits leave open (how many containers, keys that stand twice, types, arrays) is held in its hooks.

`vla_mot_client.codec` says the same again in fewer lines: a robot has no vla_mot, a server no client, and what they
share is this format. The tests hold one against the other.
"""

import math
from collections.abc import Mapping
from typing import Any, Never

import msgpack
import numpy as np

from vla_mot.infer.server.errors import RequestError, invalid

MAX_ITEMS = 256
"""Entries of one map or list, and maps and lists of one message."""
MAX_TEXT = 2000
"""Characters of one text."""
MAX_AXES = 5
MAX_DEPTH = 6
"""Maps and lists within each other."""
_MAX_KEY = 200  # characters
_KINDS = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16")
_DTYPES = {np.dtype(name).str: np.dtype(name) for name in (*_KINDS, "float32", "float64")}
_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"
_PLAIN = (type(None), bool, int, float, str, list, dict, np.ndarray)


def encode(message: Mapping[str, Any]) -> bytes:
    """Pack a message of ours: plain values, numpy arrays and scalars, and nested maps and lists of them."""
    packed: bytes = msgpack.packb(dict(message), default=_pack)
    return packed


def decode(message: bytes) -> dict[str, Any]:
    """Read one message; arrays are read-only views of it, and no code of it is ever run.

    Raises RequestError for anything but one map with text for keys, of plain values, arrays, maps and lists.
    """
    reader = _Reader()
    try:
        found = msgpack.unpackb(
            message,
            object_pairs_hook=reader.of_pairs,
            list_hook=reader.of_list,
            ext_hook=_no_extension,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
        )
    except RequestError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise invalid(f"the message is no msgpack that can be read: {str(error)[:200] or 'broken'}") from None
    if not isinstance(found, dict):
        raise invalid(f"a message is one map with text for keys, got {_name(found)}.")
    _require_shallow(found, MAX_DEPTH)
    return found


class _Reader:
    """The hooks of one message: innermost containers come first, and each is counted."""

    def __init__(self) -> None:
        self._containers = 0

    def of_list(self, items: list[Any]) -> list[Any]:
        self._count()
        for item in items:
            _require_plain("a list", item)
        return items

    def of_pairs(self, pairs: list[tuple[Any, Any]]) -> Any:
        self._count()
        found = dict(pairs)
        if len(found) < len(pairs):
            raise invalid("a key stands twice in one map.")
        if _ARRAY in found:
            return _array(found)
        if _SCALAR in found:
            return _scalar(found)
        for key, value in pairs:
            if not isinstance(key, str) or len(key) > _MAX_KEY:
                raise invalid(f"a key must be text of at most {_MAX_KEY} characters, got {_name(key)}.")
            _require_plain(key, value)
        return found

    def _count(self) -> None:
        self._containers += 1
        if self._containers > MAX_ITEMS:
            raise invalid(f"the message holds more than {MAX_ITEMS} maps and lists.")


def _require_shallow(container: dict[str, Any] | list[Any], depth: int) -> None:
    if depth == 0:
        raise invalid(f"maps and lists are nested more than {MAX_DEPTH} deep.")
    for value in container.values() if isinstance(container, dict) else container:
        if isinstance(value, dict | list):
            _require_shallow(value, depth - 1)


def _require_plain(where: str, value: Any) -> None:
    if type(value) not in _PLAIN:
        raise invalid(f"{where[:80]}: a value of type {_name(value)} has no place in a message.")
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise invalid(f"{where[:80]}: a text of {len(value)} characters; at most {MAX_TEXT} are taken.")


def _array(parts: Mapping[Any, Any]) -> np.ndarray:
    if parts.keys() != {_ARRAY, b"data", b"dtype", b"shape"} or parts[_ARRAY] is not True:
        raise invalid("an array is packed as __ndarray__ = true, data, dtype and shape, and nothing else.")
    data, dtype, shape = parts[b"data"], _dtype(parts[b"dtype"]), parts[b"shape"]
    if type(shape) is not list or len(shape) > MAX_AXES or any(type(n) is not int or n < 1 for n in shape):
        raise invalid(f"the shape of an array is a list of up to {MAX_AXES} whole numbers from 1 on.")
    wanted = math.prod(shape) * dtype.itemsize
    if type(data) is not bytes or len(data) != wanted:
        came = f"{len(data)} bytes" if type(data) is bytes else _name(data)
        raise invalid(
            f"an array of shape {shape} and dtype {dtype.str} has {wanted} bytes of data, got {came}."
        )
    return np.frombuffer(data, dtype).reshape(shape)


def _scalar(parts: Mapping[Any, Any]) -> bool | int | float:
    if parts.keys() != {_SCALAR, b"data", b"dtype"} or parts[_SCALAR] is not True:
        raise invalid("a scalar is packed as __npgeneric__ = true, data and dtype, and nothing else.")
    data, dtype = parts[b"data"], _dtype(parts[b"dtype"])
    if type(data) not in (bool, int, float):
        raise invalid(f"the data of a scalar is a number, got {_name(data)}.")
    try:
        value: bool | int | float = dtype.type(data).item()
    except (ValueError, OverflowError):
        raise invalid(f"a scalar of dtype {dtype.str} cannot hold the number that came.") from None
    return value


def _dtype(name: Any) -> np.dtype:
    found = _DTYPES.get(name) if type(name) is str else None
    if found is None:
        raise invalid(f"dtype {str(name)[:20]!r} is not taken; known: {', '.join(_DTYPES)}.")
    return found


def _no_extension(code: int, data: bytes) -> Never:
    raise invalid(f"msgpack's extension type {code} has no place in a message.")


def _name(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


def _pack(value: Any) -> dict[bytes, Any]:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.str in _DTYPES:
        told = {b"data": value.tobytes() if isinstance(value, np.ndarray) else value.item()}
        if isinstance(value, np.ndarray):
            return {_ARRAY: True, **told, b"dtype": value.dtype.str, b"shape": list(value.shape)}
        return {_SCALAR: True, **told, b"dtype": value.dtype.str}
    raise TypeError(f"a message holds plain values and arrays of numbers, not {type(value).__name__}.")

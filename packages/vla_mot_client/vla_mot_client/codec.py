"""msgpack with numpy arrays, as openpi's protocol has it; the server's own reader is stricter."""

from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

_NUMBERS = "biuf"  # kinds of dtypes: no objects, no structures


def encode(message: Mapping[str, Any]) -> bytes:
    """Pack plain values, numpy arrays and scalars, and nested maps and lists of them.

    Raises TypeError for anything else.
    """
    packed: bytes = msgpack.packb(dict(message), default=_pack)
    return packed


def decode(message: bytes) -> dict[str, Any]:
    """Unpack a message. Raises ValueError for what is none; never runs code of it."""
    try:
        found = msgpack.unpackb(message, object_hook=_unpack)
    except Exception as error:  # what a broken message makes msgpack and numpy raise is theirs to choose
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"a message is a map, got {type(found).__name__}")
    return found


def _pack(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in _NUMBERS:
        dtype = value.dtype.str
        if isinstance(value, np.generic):
            return {b"__npgeneric__": True, b"data": value.item(), b"dtype": dtype}
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": dtype, b"shape": list(value.shape)}
    raise TypeError(f"cannot send a {type(value).__name__}; send numbers, texts, numpy arrays of numbers")


def _unpack(found: dict[Any, Any]) -> Any:
    if b"__ndarray__" in found:
        return np.frombuffer(found[b"data"], _dtype(found)).reshape(found[b"shape"])
    if b"__npgeneric__" in found:
        return _dtype(found).type(found[b"data"]).item()
    return found


def _dtype(found: dict[Any, Any]) -> "np.dtype[Any]":
    dtype = np.dtype(found[b"dtype"])
    if dtype.kind not in _NUMBERS:
        raise ValueError(f"an array of dtype {dtype} is not taken")
    return dtype

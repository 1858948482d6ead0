"""Messages that somebody might send who means no good, or whose cable is broken; drawn from a seed."""

import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np

from tests.infer.server.serving import small
from vla_mot.infer.server.wire import encode


class Trap:
    """Runs code when it is unpickled; nothing here may ever do that."""

    sprung = False

    def __reduce__(self):
        return spring, ()


def spring() -> None:
    Trap.sprung = True


PICKLE = pickle.dumps(np.array([Trap()], dtype=object), protocol=4)


def packed_array(data: Any, dtype: Any, shape: Any, **more: Any) -> dict[bytes, Any]:
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape} | {
        key.encode(): value for key, value in more.items()
    }


STRUCTURED: tuple[Any, ...] = (
    packed_array(PICKLE, "|O", [1]),
    packed_array(PICKLE, "O", [1]),
    packed_array(b"\0" * 8, "<f4", [-2, -1]),
    packed_array(b"\0" * 8, "<f4", [2**62, 4]),
    packed_array(b"\0" * 8, "<f4", [2**63, 2]),
    packed_array(b"", "|u1", [0, 2**60]),
    packed_array(b"\0" * 8, "<f4", [3]),
    packed_array(b"\0" * 8, "<f4", [1] * 70),
    packed_array(b"\0" * 8, "<f4", 2),
    packed_array(b"\0" * 8, "<f4", ["2"]),
    packed_array(b"\0" * 8, "<f4", [True, 2]),
    packed_array("text", "<f4", [1]),
    packed_array(b"\0" * 8, "V8", [1]),
    packed_array(b"\0" * 8, "<M8[ns]", [1]),
    packed_array(b"\0" * 8, "<U2", [1]),
    packed_array(b"\0" * 16, "<c16", [1]),
    packed_array(b"\0" * 8, "f4,f4", [1]),
    packed_array(b"\0" * 8, "__import__('os')", [1]),
    packed_array(b"\0" * 8, {"names": []}, [1]),
    packed_array(b"\0" * 8, "<f4", [2], allow_pickle=True),
    {b"__ndarray__": True},
    {b"__ndarray__": 1, b"data": b"\0", b"dtype": "|u1", b"shape": [1]},
    {b"__npgeneric__": True, b"data": 1e300, b"dtype": "|u1"},
    {b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"},
    {b"__npgeneric__": True, b"data": 2**63, b"dtype": "<i4"},
    {b"pickle": PICKLE},
    PICKLE,
    msgpack.ExtType(5, PICKLE),
    msgpack.Timestamp(1, 2),
    "x" * 5000,
    float("nan"),
    -1,
    2**64 - 1,
    [[[[[[[[1]]]]]]]],
    {"a": {"b": {"c": {"d": {"e": 1}}}}},
    [{}] * 200,
    None,
    True,
)
"""Values that have no place in a request, whatever stands before them."""


def deep(kind: bytes, depth: int) -> bytes:
    return b"\x81\xa1a" + kind * depth + b"\xc0"


RAW: tuple[bytes, ...] = (
    b"",
    b"\xc1",
    b"\x80\x80",
    PICKLE,
    deep(b"\x91", 100),
    deep(b"\x91", 5000),
    deep(b"\x81\xa1a", 100),
    deep(b"\x81\xa1a", 5000),
    b"\xdf\xff\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff",
    b"\x81\xa1a\xdd\xff\xff\xff\xff",
    b"\x81\xa1a\xc6\xff\xff\xff\xff\x00",
    b"\x81\xa1a\xdb\xff\xff\xff\xffx",
    b"\x81\xa1a\xc9\xff\xff\xff\xff\x05",
    b"\x81\xa1a\xdc\x01\x00" + b"\x80" * 256,
    b"\x82\xa1a\x01\xa1a\x02",
    b"\x81\x01\x02",
    b"\x81\xa2\xff\xfe\x01",
    b"\x91\x01",
    b"\xa5hello",
)
"""Whole messages: broken, nested, and with lengths that never come."""


def messages(count: int, seed: int) -> Iterator[bytes]:
    """Damaged requests, requests with odd values, and noise."""
    draw = random.Random(seed)
    good = encode(small(step=3))
    kinds: tuple[Callable[[random.Random, bytes], bytes], ...] = (
        _flipped, _flipped, _cut, _spliced, _noise, _odd_value, _odd_value, _raw,
    )  # fmt: skip
    for _ in range(count):
        yield draw.choice(kinds)(draw, good)


def _flipped(draw: random.Random, good: bytes) -> bytes:
    """Some bits, most of them where msgpack's own bytes are."""
    message = bytearray(good)
    for _ in range(draw.randint(1, 6)):
        place = draw.randrange(len(message)) if draw.random() < 0.4 else draw.choice(_structure(good))
        message[place] ^= 1 << draw.randrange(8)
    return bytes(message)


_PLACES: dict[bytes, list[int]] = {}


def _structure(good: bytes) -> list[int]:
    """Where the message is not pictures."""
    if good not in _PLACES:
        _PLACES[good] = [place for place, byte in enumerate(good) if byte not in (0, 7)]
    return _PLACES[good]


def _cut(draw: random.Random, good: bytes) -> bytes:
    return good[: draw.randrange(len(good))]


def _spliced(draw: random.Random, good: bytes) -> bytes:
    first, second = sorted(draw.randrange(len(good)) for _ in range(2))
    place = draw.randrange(len(good))
    return good[:place] + good[first:second] + good[place + draw.randrange(30) :]


def _noise(draw: random.Random, good: bytes) -> bytes:
    return draw.randbytes(draw.randrange(200))


def _odd_value(draw: random.Random, good: bytes) -> bytes:
    content = small(step=3, delay=1, left_over=np.zeros((2, 3), np.float32))
    key = draw.choice(
        [*content, "seed", "reset", "deadline_ms", "embodiment", "remember", "else", b"bytes", 5]
    )
    content[key] = draw.choice(STRUCTURED)
    if draw.random() < 0.3:
        content.pop(draw.choice(list(content)))
    return msgpack.packb(content, default=_pack, strict_types=False)


def _raw(draw: random.Random, good: bytes) -> bytes:
    return draw.choice(RAW) + draw.choice((b"", b"", b"\xc0", good))


def _pack(value: Any) -> Any:
    return packed_array(value.tobytes(), value.dtype.str, list(value.shape))

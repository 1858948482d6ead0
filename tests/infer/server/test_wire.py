"""The messages: what goes through whole, what is refused with which words, and that nothing else happens."""

import asyncio
import tracemalloc

import msgpack
import numpy as np
import pytest

import vla_mot_client
from tests.infer.server.hostile import PICKLE, RAW, STRUCTURED, Trap, messages, packed_array
from tests.infer.server.serving import small
from vla_mot.infer.server.config import ServerConfig
from vla_mot.infer.server.errors import KINDS, RequestError
from vla_mot.infer.server.service import Service, Work
from vla_mot.infer.server.wire import MAX_ITEMS, MAX_TEXT, decode, encode

FUZZED = 100_000
CONTENT = {
    "picture": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "half": np.array([0.5, -1.5], np.float16),
    "flags": np.array([[True], [False]]),
    "whole": np.array(7, np.int64),
    "scalars": [np.float32(1.5), np.int64(-3), np.bool_(True)],
    "plain": {"a": None, "b": True, "c": 1, "d": 2.5, "e": "é", "f": [1, [2]]},
}


@pytest.mark.parametrize("write", [encode, vla_mot_client.encode])
@pytest.mark.parametrize("read", [decode, vla_mot_client.decode])
def test_both_codecs_say_the_same(write, read):
    found = read(write(CONTENT))
    assert found.keys() == CONTENT.keys()
    for key, value in CONTENT.items():
        if isinstance(value, np.ndarray):
            assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)
            assert np.array_equal(found[key], value)
    assert found["scalars"] == [1.5, -3, True] and found["plain"] == CONTENT["plain"]
    assert write(CONTENT) == encode(CONTENT)


def test_the_bytes_are_openpis():
    """As its client packs an array and a scalar."""
    assert msgpack.unpackb(encode({"x": np.array([1.5], "<f4"), "y": np.float32(2)})) == {
        "x": {b"__ndarray__": True, b"data": b"\x00\x00\xc0\x3f", b"dtype": "<f4", b"shape": [1]},
        "y": {b"__npgeneric__": True, b"data": 2.0, b"dtype": "<f4"},
    }


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (packed_array(PICKLE, "|O", [1]), "dtype '|O' is not taken; known: |b1, |u1"),
        (packed_array(b"\0" * 8, ">f4", [2]), "dtype '>f4' is not taken"),
        (packed_array(b"\0" * 8, "<f4", [3]), r"shape \[3\] and dtype <f4 has 12 bytes of data, got 8 bytes"),
        (packed_array(b"\0" * 8, "<f4", [2**62, 4]), "has 73786976294838206464 bytes of data, got 8 bytes"),
        (packed_array(b"\0" * 8, "<f4", [-2, -1]), "whole numbers from 1 on"),
        (packed_array(b"\0" * 8, "<f4", [1] * 6), "list of up to 5"),
        (packed_array(b"\0", "|u1", [1], more=1), "and nothing else"),
        ({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}, "cannot hold the number"),
        ({b"__npgeneric__": True, b"data": "x", b"dtype": "|u1"}, "is a number, got str"),
        (b"bytes", "a value of type bytes has no place"),
        ({b"key": 1}, "a key must be text of at most 200 characters, got bytes"),
        (msgpack.ExtType(5, b""), "extension type 5 has no place"),
        (msgpack.Timestamp(1), "a value of type Timestamp has no place"),
        ("x" * (MAX_TEXT + 1), f"a text of {MAX_TEXT + 1} characters"),
        ([0] * (MAX_ITEMS + 1), f"{MAX_ITEMS + 1} exceeds max_array_len"),
        ([[]] * MAX_ITEMS, f"more than {MAX_ITEMS} maps and lists"),
    ],
    ids=str,
)
def test_what_is_refused(value, words):
    with pytest.raises(RequestError, match=words):
        decode(msgpack.packb({"x": value}))


def test_a_message_is_one_map():
    for broken in (b"\x91\x01", b"\xc0", encode({}) * 2, encode(CONTENT)[:-1], b"\x82\xa1a\x01\xa1a\x02"):
        with pytest.raises(RequestError):
            decode(broken)


@pytest.mark.parametrize("message", RAW, ids=lambda message: message[:8].hex())
def test_a_small_message_takes_little_memory(message):
    """Whatever lengths it states."""
    tracemalloc.start()
    with pytest.raises(RequestError):
        decode(message)
    assert tracemalloc.get_traced_memory()[1] < 2**21
    tracemalloc.stop()


def test_a_large_message_of_nothing_takes_little_memory():
    """64 MiB of empty maps would be gigabytes of objects."""
    bomb = b"\x81\xa1a" + (b"\xdc\x01\x00" + b"\x80" * 255) * 4000 + b"\xc0"
    tracemalloc.start()
    with pytest.raises(RequestError, match="maps and lists"):
        decode(bomb)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_a_hundred_thousand_hostile_messages(tiny):
    """Each is read into work or refused in words; nothing runs, nothing else is raised, and a good one still works."""
    assert asyncio.run(_fuzz(tiny)) == {"work", "reply", "invalid"}
    assert not Trap.sprung


async def _fuzz(policy) -> set[str]:
    service = Service({"conveyor": policy}, ServerConfig(max_history_mib=1))
    session = service.open()
    met = set()
    for number, message in enumerate(messages(FUZZED, seed=0)):
        if number % 50 == 0:
            session.begin(0)
        try:
            found = service.prepare(session, message)
            met.add("work" if isinstance(found, Work) else "reply")
        except RequestError as error:
            met.add(error.kind)
            assert len(str(error)) < 1000 and "Traceback" not in str(error) and "/" not in str(error)
        if number % 1000 == 0:
            answered = await service.answer(session, message)
            assert isinstance(answered, bytes) or answered.partition(":")[0] in KINDS
    session.begin(0)
    assert decode(await service.answer(session, encode(small())))["actions"].shape == (4, 3)
    await service.stop()
    return met


def test_odd_values_anywhere_in_a_request(tiny):
    """Every odd value under every key, one by one."""

    async def check() -> int:
        service = Service({"conveyor": tiny}, ServerConfig())
        refused = 0
        for key in (*small(), "step", "seed", "reset", "remember", "deadline_ms", "embodiment"):
            for value in STRUCTURED:
                session = service.open()
                message = msgpack.packb({**small(), key: value}, default=_packed)
                try:
                    service.prepare(session, message)
                except RequestError:
                    refused += 1
                service.close(session)
        await service.stop()
        return refused

    assert asyncio.run(check()) > 350


def _packed(value):
    return packed_array(value.tobytes(), value.dtype.str, list(value.shape))

"""One connection to `vla-mot serve`: one request at a time, from one thread."""

import logging
import random
import socket as sockets
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from .codec import decode, encode
from .errors import ConnectionLostError, ServerError

_log = logging.getLogger(__name__)
_BACK_OFF = (0.1, 5.0)  # seconds: the first pause between two tries, and the longest
_FINAL = (400, 401, 403, 404)  # HTTP statuses that no second try changes
_LARGEST_REPLY = 64 * 2**20  # bytes


class Client:
    """Talks to a server; connects when it is first needed, and again when the connection was lost. It connects
    directly: proxies that the environment names are left alone.

    host, port: of the server. token: its token. tls: True for wss:// with this machine's certificates, a PEM file
    with those to trust, or a context. timeout: seconds to send a request and wait for its reply. patience: seconds to
    go on trying to connect, 0 for one try. A connection is a session: the frames that the server kept of the last one
    are gone with it, and the reply's `history` says what it made of that; a seed that `reset` was given is sent again.
    `connections` counts them.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        token: str | None = None,
        tls: bool | str | Path | ssl.SSLContext = False,
        timeout: float = 60.0,
        patience: float = 30.0,
    ) -> None:
        self.address = f"{'wss' if tls else 'ws'}://{f'[{host}]' if ':' in host else host}:{port}"
        self.timeout, self.patience = timeout, patience
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._tls = _context(tls)
        self._stack = ExitStack()
        self._socket: ClientConnection | None = None
        self._metadata: dict[str, Any] = {}
        self._seed: int | None = None
        self.connections = 0

    @property
    def metadata(self) -> dict[str, Any]:
        """What the server drives and expects. Raises ConnectionLostError when there is none."""
        self._connected()
        return self._metadata

    def infer(self, observation: Mapping[str, Any], *, deadline_ms: float | None = None) -> dict[str, Any]:
        """Send what the robot sees; returns `actions` `(L, D)`, absolute and in physical units, and timing.

        observation: the robot's cameras and state as `metadata` lists them, `prompt`, and best a `step`. deadline_ms:
        after which an answer is of no use. Sent again, once, when the connection was lost under it.
        Raises ServerError with the server's words, ConnectionLostError when no server answers within the timeout.
        """
        asked = dict(observation)
        if deadline_ms is not None:
            asked["deadline_ms"] = deadline_ms
        return self._ask(asked)

    def remember(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Send the pictures of a control `step` that a later request will need as its history; predicts nothing."""
        return self._ask({**observation, "remember": True})

    def reset(self, seed: int | None = None) -> dict[str, Any]:
        """Begin an episode: frames are forgotten, steps count anew. seed: of the noise; None: the server's own."""
        self._seed = seed
        return self._ask({"reset": True, **({} if seed is None else {"seed": seed})})

    def close(self) -> None:
        """Hang up; a later request connects again."""
        self._socket = None
        stack, self._stack = self._stack, ExitStack()
        stack.close()

    def __enter__(self) -> "Client":
        self._connected()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        packed = encode(message)
        fresh = self._socket is None
        try:
            return self._exchange(packed)
        except _HungUpError:
            if fresh:
                raise
        _log.warning("the connection to %s was lost; the server's session begins anew", self.address)
        return self._exchange(packed)

    def _exchange(self, packed: bytes) -> dict[str, Any]:
        socket = self._connected()
        limit = _message_bytes(self._metadata)
        if limit is not None and len(packed) > limit:
            raise ServerError(f"invalid: a message of {len(packed)} bytes; the server takes {limit} at most.")
        until = time.monotonic() + self.timeout
        try:
            self._send(socket, packed)
            reply = socket.recv(max(0.0, until - time.monotonic()))
        except (ConnectionClosed, OSError) as error:  # TimeoutError is one
            self.close()
            if time.monotonic() >= until or isinstance(error, TimeoutError):
                told = f"{self.address} gave no reply within {self.timeout:g} s"
                raise ConnectionLostError(told) from error
            raise _HungUpError(f"{self.address} hung up: {error}") from error
        except BaseException:  # interrupted: a reply that comes later must not be taken for the next one's
            self.close()
            raise
        return self._read(reply)

    def _send(self, socket: ClientConnection, packed: bytes) -> None:
        """Send, or end the connection where the link takes nothing for `timeout`: TCP itself waits for minutes."""
        # No timeout of the socket: websockets before 17 reads with it too, and takes a long silence for the end.
        watch = threading.Timer(self.timeout, _cut, [socket.socket])
        watch.daemon = True
        watch.start()
        try:
            socket.send(packed)
        finally:
            watch.cancel()

    def _read(self, reply: str | bytes) -> dict[str, Any]:
        if isinstance(reply, str):
            raise ServerError(reply)
        try:
            return decode(reply)
        except ValueError as error:
            self.close()
            raise ConnectionLostError(f"{self.address} sent no message of the protocol: {error}") from error

    def _connected(self) -> ClientConnection:
        """The connection, which is made first where there is none."""
        until, pause = time.monotonic() + self.patience, _BACK_OFF[0]
        while self._socket is None:
            try:
                self._connect()
            except ServerError:
                self.close()
                raise
            except (OSError, InvalidHandshake, ConnectionClosed, TimeoutError) as error:
                self.close()
                final = isinstance(error, InvalidStatus) and error.response.status_code in _FINAL
                if final or time.monotonic() + pause > until:
                    raise ConnectionLostError(
                        f"cannot connect to {self.address}: {_reason(error)}"
                    ) from error
                time.sleep(pause * random.uniform(0.8, 1.2))
                pause = min(2 * pause, _BACK_OFF[1])
        return self._socket

    def _connect(self) -> None:
        self._stack = ExitStack()
        socket = self._stack.enter_context(
            connect(
                self.address,
                ssl=self._tls,
                additional_headers=self._headers,
                proxy=None,
                compression=None,
                max_size=_LARGEST_REPLY,
                open_timeout=min(10.0, self.timeout),
                close_timeout=1.0,
            )
        )
        self._metadata = self._read(socket.recv(self.timeout))
        if self._seed is not None:
            self._send(socket, encode({"reset": True, "seed": self._seed}))
            self._read(socket.recv(self.timeout))
        self._socket = socket
        self.connections += 1


class _HungUpError(ConnectionLostError):
    """The connection ended under a request, which another connection may still answer."""


def _cut(link: sockets.socket) -> None:
    """End a connection under whoever is sending on it."""
    with suppress(OSError):  # it has ended
        link.shutdown(sockets.SHUT_RDWR)


def _message_bytes(metadata: Mapping[str, Any]) -> int | None:
    """The longest message that the server takes, where it says so."""
    limits = metadata.get("limits")
    limit = limits.get("message_bytes") if isinstance(limits, dict) else None
    return limit if isinstance(limit, int) else None


def _context(tls: bool | str | Path | ssl.SSLContext) -> ssl.SSLContext | None:
    if isinstance(tls, ssl.SSLContext):
        return tls
    if isinstance(tls, (str, Path)):
        return ssl.create_default_context(cafile=str(tls))
    return ssl.create_default_context() if tls else None


def _reason(error: Exception) -> str:
    if isinstance(error, InvalidStatus):
        told = bytes(error.response.body or b"").decode(errors="replace").strip()
        return f"HTTP {error.response.status_code} {told}".strip()
    return str(error) or type(error).__name__

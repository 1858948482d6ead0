"""The socket: websockets, two pages of HTTP, and an end that leaves nobody without an answer."""

import asyncio
import http
import logging
import signal
from collections.abc import Callable, Mapping

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from vla_mot.errors import ConfigError
from vla_mot.infer.policy import Policy
from vla_mot.infer.server.access import may_enter, read_token, require_safe, tls_context
from vla_mot.infer.server.config import ServerConfig
from vla_mot.infer.server.errors import RequestError
from vla_mot.infer.server.service import Service
from vla_mot.infer.server.sessions import ClientSession
from vla_mot.infer.server.wire import encode

_log = logging.getLogger(__name__)
_HEALTH, _METRICS = "/healthz", "/metrics"
_FRAMES_AHEAD = 1  # frames of one client that are read before its request was answered
_TRY_AGAIN = 1013  # close code of a server that is overloaded
_GONE = http.HTTPStatus.SERVICE_UNAVAILABLE
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
Ready = Callable[[str], None]
"""Called once with the address that clients connect to."""


class PolicyServer:
    """Serves policies until it is stopped.

    Raises ConfigError, before any policy is loaded, for a token, a certificate or an address that does not fit.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self._token = read_token(config)
        require_safe(config, self._token)
        self._tls = tls_context(config)
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Begin to end; to be called on the event loop (`loop.call_soon_threadsafe` from elsewhere)."""
        self._stop.set()

    async def run(
        self, policies: Mapping[str, Policy], on_ready: Ready = lambda address: None, *, signals: bool = False
    ) -> bool:
        """Listen until `stop`, or SIGTERM or SIGINT with `signals`; a second one ends the process at once.

        policies: name of a robot → the policy that drives it.
        Requests that came are answered first (for at most `drain_seconds`), then clients are closed with code 1001.
        Returns whether all were answered. What the worker thread is at then goes on (`busy`), and Python's own exit
        would wait for it. An end during the warm-up does not wait for that either.
        Raises ConfigError for an address that cannot be listened on, without any policy, or for one whose actions are
        not finite.
        """
        if signals:
            self._watch_signals()
        self._service = Service(policies, self.config)
        try:
            if not await self._warmed_up():
                return await self._service.stop()
            server = await self._listen()
        except Exception:
            await self._service.stop()
            raise
        try:
            on_ready(self._address(server.sockets[0].getsockname()[1]))
            await self._stop.wait()
            _log.warning("stopping; requests that are still answered first: %d", self._service.answering())
            return await self._service.stop()
        finally:
            server.close()  # the connections too, with code 1001
            await server.wait_closed()

    @property
    def busy(self) -> bool:
        """Whether the worker thread is at something, which nothing can stop but the end of the process."""
        return self._service.busy()

    async def _warmed_up(self) -> bool:
        """Warm up, if that is asked for; False where the end came first."""
        if not self.config.warm_up:
            return True
        warming = asyncio.create_task(self._service.warm_up())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({warming, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not warming.done():
                _log.warning("stopping before the warm-up was done")
                return False
            warming.result()
            return True
        except RequestError as error:
            raise ConfigError(
                f"the warm-up (warm_up=true) got no actions: {error} `vla-mot verify checkpoint=…` looks at weights "
                "and statistics."
            ) from error
        finally:
            warming.cancel()
            stopping.cancel()

    async def _listen(self) -> Server:
        try:
            return await self._serve()
        except OSError as error:
            where = f"host={self.config.host} port={self.config.port}"
            raise ConfigError(f"{where}: cannot listen there: {error}.") from error

    async def _serve(self) -> Server:
        return await serve(
            self._talk,
            self.config.host,
            self.config.port,
            process_request=self._greet,
            origins=[None],  # a browser's page says its origin; no page may drive a robot through its visitor
            compression=None,
            max_size=self.config.message_bytes,
            max_queue=_FRAMES_AHEAD,
            ping_interval=self.config.ping_seconds,
            ping_timeout=self.config.ping_seconds,
            server_header=None,
            ssl=self._tls,
        )

    def _address(self, port: int) -> str:
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"{'wss' if self._tls else 'ws'}://{host}:{port}"

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()

        def heard() -> None:
            self.stop()
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)  # a KeyboardInterrupt would wait for the worker

        for number in _SIGNALS:
            loop.add_signal_handler(number, heard)

    def _greet(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer what is no websocket, and turn away who may not enter; None lets the handshake go on."""
        path = request.path.partition("?")[0]
        if path == _HEALTH:
            ailing = self._service.ailing()
            return connection.respond(_GONE if ailing else http.HTTPStatus.OK, f"{ailing or 'ok'}\n")
        told = request.headers.get_all("Authorization")
        if not may_enter(told[0] if len(told) == 1 else None, self._token):
            refused = connection.respond(http.HTTPStatus.UNAUTHORIZED, "this server asks for a token\n")
            refused.headers["WWW-Authenticate"] = "Bearer"
            return refused
        if path == _METRICS:
            return connection.respond(http.HTTPStatus.OK, self._service.metrics.text())
        if problem := self._service.full():
            return connection.respond(_GONE, f"{problem}\n")
        return None

    async def _talk(self, connection: ServerConnection) -> None:
        """One client, from its metadata to its end; a request after the other."""
        try:
            session = self._service.open()
        except RequestError as error:
            return await connection.close(_TRY_AGAIN, str(error))
        try:
            await connection.send(encode(self._service.metadata))
            async for message in connection:
                reply = await self._answer(connection, session, message)
                if reply is not None:
                    await connection.send(reply)
        except ConnectionClosed:
            pass
        finally:
            self._service.close(session)

    async def _answer(
        self, connection: ServerConnection, session: ClientSession, message: bytes | str
    ) -> bytes | str | None:
        """The reply, or None when the client left before it was there: then its place in the queue is free."""
        answering = asyncio.create_task(self._service.answer(session, message))
        gone = asyncio.create_task(connection.wait_closed())
        try:
            await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
            return answering.result() if answering.done() else None
        finally:
            gone.cancel()
            answering.cancel()

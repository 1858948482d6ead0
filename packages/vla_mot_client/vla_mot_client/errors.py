"""What can go wrong with a request."""

_KINDS = ("invalid", "busy", "late", "stopping", "failed")


class ClientError(RuntimeError):
    """A request has no answer; catch this one to catch all."""


class ServerError(ClientError):
    """The server's own words. The connection goes on; `busy` and `late` are worth another try.

    kind: `invalid`, `busy`, `late`, `stopping` or `failed`; `unknown` from a server that says it otherwise.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        kind = message.partition(":")[0]
        self.kind = kind if kind in _KINDS else "unknown"


class ConnectionLostError(ClientError):
    """There is no server, it turned the client away, or it fell silent. The next request connects again."""

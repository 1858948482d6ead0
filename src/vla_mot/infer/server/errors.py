"""What a client is told instead of actions."""

from typing import Literal, get_args

Kind = Literal["invalid", "busy", "late", "stopping", "failed"]
"""invalid: the request does not fit. busy: too many wait. late: its deadline passed. stopping: the server ends.
failed: the server could not, and its log says why."""
KINDS: tuple[str, ...] = get_args(Kind)


class RequestError(ValueError):
    """One request cannot be answered; its text, which begins with the kind, is what the client gets."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


def invalid(message: str) -> RequestError:
    """The error of a request that does not fit."""
    return RequestError("invalid", message)

"""Errors of the main server by whose fault they are; any other `FedspkError` is the request's."""

from __future__ import annotations

from fedspk.errors import FedspkError


class UnauthenticatedError(FedspkError):
    """Nobody knows who is asking."""


class ForbiddenError(FedspkError):
    """Who is asking is known, and may not do this."""


class NotFoundError(FedspkError):
    """What is asked for is not there."""


class ConflictError(FedspkError):
    """The request is right in itself, but not now: the present state is another."""


class LacksKeyError(ConflictError):
    """A signature is needed whose key is elsewhere."""


class UnavailableError(FedspkError):
    """Repository, store or database cannot be used at present."""


class WrongClockError(UnauthenticatedError):
    """A request was signed too long ago, or in the future; `server_ms` is the time here."""

    def __init__(self, message: str, server_ms: int) -> None:
        super().__init__(message)
        self.server_ms = server_ms

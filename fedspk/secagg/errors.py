"""Why a secure sum stops, told apart by who has to act."""

from __future__ import annotations

from fedspk.errors import FedspkError


class SumRefused(FedspkError):  # noqa: N818 - named after the event
    """A device refuses what the aggregator asks: a rule of the protocol is broken."""


class SumAborted(FedspkError):  # noqa: N818
    """The aggregator cannot finish this sum.

    suspects: devices that have cheated or are broken, to leave out of the sums to come.
    """

    def __init__(self, message: str, suspects: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.suspects = suspects


class MessageError(FedspkError):
    """One message is malformed or does not verify: its sender counts as dropped."""

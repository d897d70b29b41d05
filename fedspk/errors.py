"""Errors that a user can act on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class FedspkError(Exception):
    """Bad input: one sentence that names the file or field and the remedy.

    The command line prints the sentence alone and exits with code 2.
    """


def first_fault(error: ValidationError) -> str:
    """Return the first thing that is wrong with a document, and with which field."""
    fault = error.errors()[0]
    field = ".".join(str(part) for part in fault["loc"]) or "the text"
    return f"{field}: {fault['msg']}"

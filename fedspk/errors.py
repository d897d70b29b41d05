"""Errors that a user can act on."""

from __future__ import annotations


class FedspkError(Exception):
    """Bad input: one sentence that names the file or field and the remedy.

    The command line prints the sentence alone and exits with code 2.
    """

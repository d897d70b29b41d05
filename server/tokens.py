"""Tokens of operators, sessions and devices to be: 256 random bits, kept as their SHA-256 only.

A hash without salt or stretching is enough, since nobody guesses 256 bits; a token is found by its
hash, so that no comparison takes longer the more of it is right.
"""

from __future__ import annotations

import hashlib
import secrets

PREFIX = "fedspk_"
"""Lets scanners for leaked secrets know a token when they see one."""


def new_token() -> str:
    """Return a fresh token."""
    return PREFIX + secrets.token_urlsafe(32)


def hashed(token: str) -> str:
    """Return what is kept of a token, in 64 hex digits."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()

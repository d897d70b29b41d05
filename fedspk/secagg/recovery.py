"""Secrets from their shares, although some holders lie.

Every secret comes with a public commitment, so a wrong one is noticed. Then subsets of the holders
are tried until one gives the secret; whoever contradicts it has lied and is not asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import SystemRandom
from typing import TypeAlias

from fedspk.secagg.errors import MessageError, SumAborted
from fedspk.secagg.shamir import check_share, combine_many

_Shares: TypeAlias = dict[int, bytes]

_SUBSETS = 256
"""Random subsets tried: with 100 shares of which 67 recover, 4 liars escape one time in 15."""


@dataclass(frozen=True)
class SharedSecret:
    """What is to be recovered.

    device: whose secret it is.
    holders: the holders of its shares, ascending.
    accepts: whether a value is the secret.
    shares: by position among the holders, as they came in.
    """

    device: str
    holders: tuple[int, ...]
    accepts: Callable[[bytes], bool]
    shares: _Shares = field(default_factory=dict, repr=False)


def recover(secrets: Sequence[SharedSecret], threshold: int) -> list[bytes]:
    """Return every secret.

    Raises:
        SumAborted: one has fewer than `threshold` shares, or too many wrong ones.
    """
    for secret in secrets:
        if len(secret.shares) < threshold:
            raise _cannot_recover(secret)
    try:
        values = combine_many([secret.shares for secret in secrets], threshold)
    except MessageError:  # a malformed share somewhere
        values = [b""] * len(secrets)
    liars: set[int] = set()
    return [
        value if secret.accepts(value) else _search(secret, threshold, liars)
        for secret, value in zip(secrets, values, strict=True)
    ]


def _search(secret: SharedSecret, threshold: int, liars: set[int]) -> bytes:
    """Return the secret although some shares are wrong; add their holders to `liars`."""
    shares = {
        position: share
        for position, share in secret.shares.items()
        if secret.holders[position] not in liars and _is_well_formed(share)
    }
    if len(shares) < threshold:
        raise _cannot_recover(secret)
    for subsets in _attempts(shares, threshold):
        for subset, value in zip(subsets, combine_many(subsets, threshold), strict=True):
            if secret.accepts(value):
                trusted = dict(sorted(subset.items())[:threshold])
                liars |= _contradicting(secret, trusted, threshold)
                return value
    raise _cannot_recover(secret)


def _attempts(shares: _Shares, threshold: int) -> Iterator[list[_Shares]]:
    """Yield what to try: all shares, as they are without the known liars; then subsets."""
    yield [shares]
    if len(shares) > threshold:
        draw, positions = SystemRandom().sample, sorted(shares)
        yield [{p: shares[p] for p in draw(positions, threshold)} for _ in range(_SUBSETS)]


def _contradicting(secret: SharedSecret, trusted: _Shares, threshold: int) -> set[int]:
    """Return the holders whose shares do not lie on the polynomials of the trusted ones."""
    others = {position: secret.shares[position] for position in secret.shares.keys() - trusted}
    liars = {p for p, share in others.items() if not _is_well_formed(share)}
    rest = list(others.keys() - liars)
    some = dict(list(trusted.items())[1:])
    values = combine_many([some | {position: others[position]} for position in rest], threshold)
    liars |= {p for p, value in zip(rest, values, strict=True) if not secret.accepts(value)}
    return {secret.holders[position] for position in liars}


def _is_well_formed(share: bytes) -> bool:
    try:
        check_share(share)
    except MessageError:
        return False
    return True


def _cannot_recover(secret: SharedSecret) -> SumAborted:
    return SumAborted(
        f"A secret of device {secret.device} cannot be recovered from the shares that came; "
        "repeat the sum without it.",
        suspects=(secret.device,),
    )

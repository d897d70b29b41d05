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
    shares: by holder, as they came in.
    """

    device: str
    holders: tuple[int, ...]
    accepts: Callable[[bytes], bool]
    shares: _Shares = field(default_factory=dict, repr=False)

    def positioned(self, shares: _Shares) -> _Shares:
        """Return some of the shares by position among the holders."""
        return {
            position: shares[holder]
            for position, holder in enumerate(self.holders)
            if holder in shares
        }


def recover(secrets: Sequence[SharedSecret], threshold: int) -> list[bytes]:
    """Return every secret.

    Raises:
        SumAborted: one has fewer than `threshold` shares, or too many wrong ones.
    """
    for secret in secrets:
        if len(secret.shares) < threshold:
            raise _cannot_recover(secret)
    try:
        values = combine_many([secret.positioned(secret.shares) for secret in secrets], threshold)
    except MessageError:  # a malformed share somewhere
        values = [b""] * len(secrets)
    liars: set[int] = set()
    return [
        value if secret.accepts(value) else _search(secret, threshold, liars)
        for secret, value in zip(secrets, values, strict=True)
    ]


def _search(secret: SharedSecret, threshold: int, liars: set[int]) -> bytes:
    """Return the secret although some shares are wrong; add their holders to `liars`."""
    liars |= {holder for holder, share in secret.shares.items() if not _is_well_formed(share)}
    shares = {holder: s for holder, s in secret.shares.items() if holder not in liars}
    if len(shares) < threshold:
        raise _cannot_recover(secret)
    for subsets in _attempts(shares, threshold):
        values = combine_many([secret.positioned(subset) for subset in subsets], threshold)
        for subset, value in zip(subsets, values, strict=True):
            if secret.accepts(value):
                trusted = dict(sorted(subset.items())[:threshold])
                liars |= _contradicting(secret, shares, trusted)
                return value
    raise _cannot_recover(secret)


def _attempts(shares: _Shares, threshold: int) -> Iterator[list[_Shares]]:
    """Yield what to try: all shares, as they are without the known liars; then subsets."""
    yield [shares]
    if len(shares) > threshold:
        draw, holders = SystemRandom().sample, sorted(shares)
        yield [{h: shares[h] for h in draw(holders, threshold)} for _ in range(_SUBSETS)]


def _contradicting(secret: SharedSecret, shares: _Shares, trusted: _Shares) -> set[int]:
    """Return the holders whose shares do not give the secret together with the trusted ones."""
    others = list(shares.keys() - trusted.keys())
    base = dict(list(trusted.items())[1:])
    cases = [secret.positioned(base | {other: shares[other]}) for other in others]
    values = combine_many(cases, len(trusted))
    return {o for o, value in zip(others, values, strict=True) if not secret.accepts(value)}


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

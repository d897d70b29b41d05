"""Secrets from their shares, although some holders lie, and who is to blame when that fails.

Every secret comes with a public commitment, so a wrong one is noticed. Then the wrong shares are
found by Reed-Solomon decoding: up to half of those that came beyond the threshold, and in a small
cohort by trying without each few of them, up to all of those. A holder that has lied about one
secret is not used for the next, unless that cannot do without: its share may have been dealt wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, takewhile
from math import comb
from typing import TypeAlias

from fedspk.secagg.errors import MessageError, SumAborted
from fedspk.secagg.shamir import check_shares, combine_many, find_wrong

_Shares: TypeAlias = dict[int, bytes]

_TRIES = 256
"""Sets of holders of one size that are left out in turn, at most."""


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

    def sound(self) -> _Shares:
        """Return the well-formed shares."""
        if _are_well_formed(list(self.shares.values())):
            return self.shares
        return {holder: share for holder, share in self.shares.items() if _are_well_formed([share])}


def recover(
    secrets: Sequence[SharedSecret], threshold: int, *, answered: Collection[int], corrupt: int
) -> list[bytes]:
    """Return every secret.

    Args:
        secrets: with the shares that came.
        threshold: shares that recover a secret.
        answered: the holders that gave shares of something.
        corrupt: how many holders of a secret may lie before its owner is blamed for them.

    Raises:
        SumAborted: one has fewer than `threshold` shares, or too many wrong ones. Suspects are the
            devices that must have dealt wrong shares.
    """
    liars: set[int] = set()
    values = [
        value if secret.accepts(value) else _search(secret, threshold, liars)
        for secret, value in zip(secrets, _at_once(secrets, threshold), strict=True)
    ]
    lost = [secret for secret, value in zip(secrets, values, strict=True) if value is None]
    if lost:
        guilty = [each.device for each in lost if _is_guilty(each, threshold, answered, corrupt)]
        if 2 * len(guilty) > len(secrets):  # then more holders lie than was foreseen
            guilty = []
        raise _cannot_recover(lost[0].device, guilty)
    return [value for value in values if value is not None]


def _at_once(secrets: Sequence[SharedSecret], threshold: int) -> list[bytes]:
    """Return what the secrets are if nobody lies."""
    try:
        return combine_many([secret.positioned(secret.shares) for secret in secrets], threshold)
    except MessageError:  # one has too few shares, or a malformed one
        return [b""] * len(secrets)


def _search(secret: SharedSecret, threshold: int, liars: set[int]) -> bytes | None:
    """Return the secret although some shares are wrong; add their holders to `liars`."""
    sound = secret.sound()
    honest = {holder: share for holder, share in sound.items() if holder not in liars}
    for shares in (honest, sound) if len(honest) < len(sound) else (sound,):
        for wrong in _explanations(secret.positioned(shares), threshold):
            left = secret.positioned(shares)
            for position in wrong:
                del left[position]
            (value,) = combine_many([left], threshold)
            if secret.accepts(value):
                liars |= secret.shares.keys() - sound.keys()
                liars |= {secret.holders[position] for position in wrong}
                return value
    return None


def _explanations(shares: _Shares, threshold: int) -> Iterator[Collection[int]]:
    """Yield sets of shares that may be wrong, by position: none, those found, small sets."""
    if len(shares) < threshold:
        return
    yield ()
    if found := find_wrong(shares, threshold):
        yield found
    for size in _tried_sizes(len(shares), threshold):
        yield from combinations(sorted(shares), size)


def _tried_sizes(shares: int, threshold: int) -> list[int]:
    """Return how many shares are left out in turn, beyond what decoding corrects."""
    spare = shares - threshold
    sizes = range(spare // 2 + 1, spare + 1)
    return list(takewhile(lambda size: comb(shares, size) <= _TRIES, sizes))


def _is_guilty(
    secret: SharedSecret, threshold: int, answered: Collection[int], corrupt: int
) -> bool:
    """Whether a secret's owner must have dealt wrong shares, if at most `corrupt` holders lie.

    Enough holders have answered, and more of them have no share to give than may lie; or so many
    shares came that those who may still lie could not have hidden the secret.
    """
    answers = sum(holder in answered for holder in secret.holders)
    if answers < threshold:
        return False
    shares = len(secret.sound())
    lying = corrupt - (answers - shares)
    return lying < 0 or lying <= _correctable(shares, threshold)


def _correctable(shares: int, threshold: int) -> int:
    """Return how many wrong shares are found for certain; below 0: there are too few shares."""
    if shares < threshold:
        return -1
    return max(((shares - threshold) // 2, *_tried_sizes(shares, threshold)))


def _are_well_formed(shares: Sequence[bytes]) -> bool:
    try:
        check_shares(shares)
    except MessageError:
        return False
    return True


def _cannot_recover(device: str, guilty: Sequence[str]) -> SumAborted:
    blamed = f" {', '.join(guilty)} dealt wrong shares." if guilty else ""
    return SumAborted(
        f"A secret of device {device} cannot be recovered from the shares that came.{blamed}",
        suspects=tuple(guilty),
    )

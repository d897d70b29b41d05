"""Shamir's secret sharing of 32-byte secrets over the field of 65537 elements.

A secret is 16 limbs of 16 bits, each the constant of its own random polynomial of degree
threshold - 1. The holder at position h gets the values at h + 1: `threshold` holders recover the
secret by interpolation at zero, fewer learn nothing. A share is 34 bytes: 16 big-endian limbs
modulo 2^16, then the bits (highest first) of those limbs that are 2^16 itself, the one value that
16 bits cannot hold.

Source: Shamir, "How to share a secret", 1979. The field is small so that one matrix product shares
a secret (exact in float64), and its multiplicative group has 2^16 elements, so that products of
many factors are sums of 16-bit logarithms.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import zip_longest
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fedspk.secagg.errors import MessageError
from fedspk.secagg.keystream import Keystream

PRIME = 65537
SECRET_BYTES = 32
SHARE_BYTES = 34
MAXIMUM_SHARES = PRIME - 1

_LIMBS = 16
_GENERATOR = 3  # of the multiplicative group

_Floats: TypeAlias = npt.NDArray[np.float64]
_Integers: TypeAlias = npt.NDArray[np.int64]


def split(secrets: Sequence[bytes], shares: int, threshold: int) -> list[list[bytes]]:
    """Return the shares of each secret (32 bytes): [secret][holder position] -> 34 bytes.

    Raises:
        ValueError: a secret is not 32 bytes, or not 1 <= threshold <= shares <= 65536.
    """
    if not 1 <= threshold <= shares <= MAXIMUM_SHARES:
        raise ValueError(f"cannot make {shares} shares of which {threshold} recover the secret")
    if any(len(secret) != SECRET_BYTES for secret in secrets):
        raise ValueError("a secret must be 32 bytes")
    coefficients = np.empty((threshold, len(secrets) * _LIMBS))
    coefficients[0] = np.frombuffer(b"".join(secrets), ">u2")
    coefficients[1:] = _random_elements(threshold - 1, len(secrets) * _LIMBS)
    values = _modulo(_powers(shares, threshold) @ coefficients)  # (shares, secrets * limbs)
    return _encode(values.reshape(shares, len(secrets), _LIMBS).swapaxes(0, 1))


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the secret from its shares, holder position -> share; see `combine_many`."""
    return combine_many([shares], threshold)[0]


def combine_many(cases: Sequence[Mapping[int, bytes]], threshold: int) -> list[bytes]:
    """Return the secret of each case, a mapping from holder position to share.

    The shares of the `threshold` lowest positions are used. A wrong share among them gives a wrong
    secret without notice: compare what comes out with a commitment.

    Raises:
        MessageError: a case has fewer than `threshold` shares, or one used is malformed.
    """
    alike: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, case in enumerate(cases):
        alike[_holders(case, threshold)].append(index)
    secrets = [b""] * len(cases)
    for holders, indices in alike.items():
        values = _decode([cases[index][holder] for index in indices for holder in holders])
        limbs = _modulo(_weights(holders) @ values.reshape(len(indices), threshold, _LIMBS))
        for index, limb in zip(indices, limbs.astype(">u2"), strict=True):
            secrets[index] = limb.tobytes()
    return secrets


def find_wrong(shares: Mapping[int, bytes], threshold: int) -> set[int] | None:
    """Return the positions of the wrong ones among a secret's shares, holder position -> share.

    Shares are a Reed-Solomon code (McEliece and Sarwate 1981): of m, up to floor((m - threshold)/2)
    wrong ones are found for certain, whatever limbs they are wrong in. Each limb's syndromes are
    the linear recurrence whose roots are the wrong holders' points (Berlekamp 1968; Massey 1969).

    Returns:
        None if more must be wrong. More may also give a wrong set: check the secret of the rest.

    Raises:
        MessageError: there are fewer than `threshold` shares, or one is malformed.
    """
    holders = _holders(shares, max(threshold, len(shares)))
    checks = len(holders) - threshold
    values = _decode([shares[holder] for holder in holders]).reshape(-1, _LIMBS)
    powers = _powers(holders[-1] + 1, checks + 1)[list(holders), 1:]  # from the first, x_i
    # Lagrange's weights at zero times x_i are, but for a factor, the dual code's multipliers.
    dual = _modulo(_weights(holders)[:, None] * powers)
    syndromes = _modulo(dual.T @ values)  # (checks, limbs)
    points = np.array(holders, np.int64) + 1
    wrong: set[int] = set()
    for limb in syndromes.T.tolist():
        locator = _shortest_recurrence(limb)
        located = np.flatnonzero(_evaluate(locator, points) == 0)
        if len(located) != len(locator) - 1 or len(located) > checks // 2:
            return None
        wrong |= {holders[index] for index in located}
    # Whoever dealt the shares can bend another few in every limb.
    return wrong if len(wrong) <= checks else None


def check_shares(shares: Sequence[bytes]) -> None:
    """Accept well-formed shares.

    Raises:
        MessageError: the length of one is not 34 bytes, or it gives a limb two values.
    """
    _decode(shares)


def _holders(case: Mapping[int, bytes], threshold: int) -> tuple[int, ...]:
    holders = sorted(case)[:threshold]
    if not 1 <= threshold <= len(holders):
        raise MessageError(f"{len(case)} shares do not recover a secret that needs {threshold}.")
    if not 0 <= holders[0] <= holders[-1] < MAXIMUM_SHARES:
        raise MessageError("the position of a share is out of range.")
    return tuple(holders)


def _shortest_recurrence(sequence: Sequence[int]) -> list[int]:
    """Return the c of least length, c_0 = 1, with sum_i c_i s_(n-i) = 0 for every later n.

    Source: Massey 1969, "Shift-register synthesis and BCH decoding", algorithm 2.
    """
    current, previous = [1], [1]
    length, gap, last = 0, 1, 1
    for n in range(len(sequence)):
        error = sum(c * sequence[n - i] for i, c in enumerate(current)) % PRIME
        if error:
            factor = error * pow(last, -1, PRIME)
            shifted = [0] * gap + [factor * c for c in previous]
            pairs = zip_longest(current, shifted, fillvalue=0)
            corrected = [(c - s) % PRIME for c, s in pairs]
            if 2 * length <= n:
                previous, last, length, gap = current, error, n + 1 - length, 0
            current = corrected
        gap += 1
    return current + [0] * (length + 1 - len(current))


def _evaluate(coefficients: Sequence[int], points: _Integers) -> _Integers:
    """Return a polynomial's values at the points; its first coefficient is the highest power's."""
    values = np.zeros_like(points)
    for coefficient in coefficients:
        values = (values * points + coefficient) % PRIME
    return values


def _random_elements(rows: int, columns: int) -> _Floats:
    # 2^64 = 1 modulo the prime: of 2^64 draws, zero gets one more than the other elements.
    draws = np.empty((rows, columns), np.uint64)
    Keystream(os.urandom(32)).fill(draws)
    return (draws % PRIME).astype(np.float64)


@lru_cache(maxsize=4)
def _powers(shares: int, threshold: int) -> _Floats:
    """Return the Vandermonde matrix (shares, threshold) of the holders' points."""
    points = np.arange(1, shares + 1, dtype=np.int64)
    powers = np.ones((shares, threshold), np.int64)
    for degree in range(1, threshold):
        powers[:, degree] = powers[:, degree - 1] * points % PRIME
    return powers.astype(np.float64)


def _weights(holders: tuple[int, ...]) -> _Floats:
    """Return Lagrange's weights at zero, the product over j != i of x_j / (x_j - x_i)."""
    exponentials, logarithms = _tables()
    points = np.array(holders) + 1
    # A negative difference indexes the table from its end: modulo the prime, as it should be.
    differences = logarithms[points[None, :] - points[:, None]].sum(axis=1, dtype=np.uint16)
    factors = logarithms[points]
    weights: _Floats = exponentials[factors.sum(dtype=np.uint16) - factors - differences]
    return weights


@lru_cache(maxsize=1)
def _tables() -> tuple[_Floats, npt.NDArray[np.uint16]]:
    """Return the powers of the generator, and the exponents of 0 (as if it were 1) to 65536."""
    exponentials = np.ones(1, np.int64)
    for doubling in range(16):
        step = pow(_GENERATOR, 1 << doubling, PRIME)
        exponentials = np.concatenate([exponentials, exponentials * step % PRIME])
    logarithms = np.zeros(PRIME, np.uint16)
    logarithms[exponentials] = np.arange(PRIME - 1)
    return exponentials.astype(np.float64), logarithms


def _modulo(values: _Floats) -> _Integers:
    # Exact: 2^16 products of at most 2^32 stay below 2^53.
    return values.astype(np.int64) % PRIME


def _encode(values: _Integers) -> list[list[bytes]]:
    """Return the values (secrets, shares, limbs) of field elements as shares."""
    limbs = values.astype(">u2").view(np.uint8)
    full = np.packbits(values == PRIME - 1, axis=-1)
    shares = np.concatenate([limbs, full], axis=-1)  # (secrets, shares, 34)
    return [[share.tobytes() for share in row] for row in shares]


def _decode(shares: Sequence[bytes]) -> _Floats:
    """Return the field elements (shares, limbs) of shares; MessageError if one is malformed."""
    if any(len(share) != SHARE_BYTES for share in shares):
        raise MessageError(f"a share must be {SHARE_BYTES} bytes.")
    data = np.frombuffer(b"".join(shares), np.uint8).reshape(-1, SHARE_BYTES)
    limbs = np.ascontiguousarray(data[:, :SECRET_BYTES]).view(">u2")
    full = np.unpackbits(data[:, SECRET_BYTES:], axis=1)
    if np.any(limbs * full):
        raise MessageError("a share gives one of its limbs two values.")
    elements: _Floats = limbs + full * float(PRIME - 1)
    return elements

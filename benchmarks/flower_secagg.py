"""What Flower's own functions for SecAgg+ take, each timed alone, for `benchmarks/secagg.py`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import (
    decrypt,
    encrypt,
    generate_shared_key,
)
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    parameters_addition,
    parameters_mod,
    parameters_multiply,
)
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_utils import (
    pseudo_rand_gen,
    share_keys_plaintext_concat,
)
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)

_CLIPPING, _TARGET_RANGE, _MODULUS = 8.0, 1 << 22, 1 << 32  # the defaults of SecAggPlusWorkflow
_MEASURED_SIZE = 1_000_000


@dataclass(frozen=True)
class Costs:
    """Processor seconds of one call: on keys, and for each number of a vector."""

    key_pair: float
    agree: float
    seal: float
    unseal: float
    share_seed: float
    share_key: float
    combine_seed: float
    combine_key: float
    quantise: float
    mask: float
    add: float
    modulo: float

    @classmethod
    def measure(cls, shares: int, threshold: int, dropout: float) -> Costs:
        """Time the functions; a part of the shares does not come back."""
        return cls(**_of_keys(shares, threshold, round(shares * (1 - dropout))), **_of_vectors())

    def device(self, neighbours: int, size: int) -> float:
        """Return what the four stages of `secaggplus_mod` take."""
        secrets = 2 * self.key_pair + self.share_seed + self.share_key
        pairs = neighbours * (2 * self.agree + self.seal + self.unseal)
        masks = (neighbours + 1) * (self.mask + self.add)
        return secrets + pairs + size * (self.quantise + masks + self.modulo)

    def server(self, neighbours: int, size: int, alive: int, failed: int) -> float:
        """Return what adding up and unmasking take in `SecAggPlusWorkflow`."""
        keys = alive * self.combine_seed + failed * (self.combine_key + neighbours * self.agree)
        masks = (alive + failed * neighbours) * (self.mask + self.add)
        return keys + size * ((alive - 1) * self.add + masks + 2 * self.modulo)


def _of_keys(shares: int, threshold: int, answering: int) -> dict[str, float]:
    (own, _), (_, other) = generate_key_pairs(), generate_key_pairs()
    private, public = private_key_to_bytes(own), public_key_to_bytes(other)
    key = generate_shared_key(own, other)
    seed_shares = create_shares(os.urandom(32), threshold, shares)[:answering]
    key_shares = create_shares(private, threshold, shares)[:answering]
    content = share_keys_plaintext_concat(1, 2, seed_shares[0], key_shares[0])
    box = encrypt(key, content)

    def agree() -> bytes:
        return generate_shared_key(bytes_to_private_key(private), bytes_to_public_key(public))

    return {
        "key_pair": _seconds(generate_key_pairs, 20),
        "agree": _seconds(agree, 20),
        "seal": _seconds(lambda: encrypt(key, content), 20),
        "unseal": _seconds(lambda: decrypt(key, box), 20),
        "share_seed": _seconds(lambda: create_shares(os.urandom(32), threshold, shares)),
        "share_key": _seconds(lambda: create_shares(private, threshold, shares)),
        "combine_seed": _seconds(lambda: combine_shares(seed_shares)),
        "combine_key": _seconds(lambda: combine_shares(key_shares)),
    }


@cache
def _of_vectors() -> dict[str, float]:
    generator = np.random.default_rng(0)
    update: list[Any] = [generator.standard_normal(_MEASURED_SIZE).astype(np.float32)]
    shape, seed = [update[0].shape], os.urandom(32)
    mask: list[Any] = pseudo_rand_gen(seed, _MODULUS, shape)
    total: list[Any] = parameters_addition(mask, mask)
    calls: dict[str, Callable[[], object]] = {
        "quantise": lambda: quantize(parameters_multiply(update, 0.5), _CLIPPING, _TARGET_RANGE),
        "mask": lambda: pseudo_rand_gen(seed, _MODULUS, shape),
        "add": lambda: parameters_addition(total, mask),
        "modulo": lambda: parameters_mod(total, _MODULUS),
    }
    return {name: _seconds(call, 5) / _MEASURED_SIZE for name, call in calls.items()}


def _seconds(call: Callable[[], object], times: int = 1) -> float:
    """Return the processor time of the fastest of some calls."""
    fastest = float("inf")
    for _ in range(times):
        started = time.process_time()
        call()
        fastest = min(fastest, time.process_time() - started)
    return fastest

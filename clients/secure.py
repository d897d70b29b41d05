"""A device's part in secure sums: its files around `fedspk.secagg.client`, which has the rules.

What the device remembers lies in one file in its private folder. Every answer is written there
before it leaves, so that after a power cut no step of a sum is answered twice. One step at a time,
training included: a lock beside the file keeps every other process out. One run at a time: a second
one would give up the sum of the first, and its rounds would be forgotten (see
`fedspk.secagg.client` for what that leaves open).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedspk.errors import FedspkError
from fedspk.files import atomic_write, remove_partial
from fedspk.rounds import (
    MaskedEvaluateRequest,
    MaskedTrainRequest,
    RunConfig,
    SumReply,
    SumRequest,
    SumShareRequest,
)
from fedspk.secagg.client import DevicePolicy, SumClient
from fedspk.secagg.contribution import encode_contribution, rounding_key, sum_terms
from fedspk.secagg.errors import SumRefused
from fedspk.secagg.keys import DeviceRegister, Identity
from fedspk.secagg.masks import MaskedVector
from fedspk.secagg.messages import (
    OfferRequest,
    Purpose,
    ShareRequest,
    SurvivorsRequest,
    Terms,
    UnmaskRequest,
    UploadRequest,
)

_STATE_FILE = "secure-sums.state"
_LOCK_FILE = "secure-sums.lock"


@dataclass(frozen=True)
class Contribution:
    """What a device puts into a sum: its delta (n,) float32, and figures by name."""

    figures: Mapping[str, float]
    delta: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))


class SecureDevice:
    """One device's answers to the steps of a secure sum.

    Args:
        device: the device's name.
        identity: file of its identity.
        register: file of the fleet's register.
        policy: what it asks of every sum.
        folder: what is private to it.
        durable: a power cut is survived too. A simulated device needs not.

    Raises (all methods):
        SumRefused: the request breaks a rule, or the device is at another step.
        FedspkError: a file is missing or broken, or of another device.
    """

    def __init__(
        self,
        device: str,
        identity: Path,
        register: Path,
        policy: DevicePolicy,
        folder: Path,
        *,
        durable: bool = True,
    ) -> None:
        self._identity = _identity(identity, _modified(identity))
        if self._identity.device != device:
            raise FedspkError(
                f"{identity}: is the identity of {self._identity.device}, not of {device}; give "
                "each device its own."
            )
        self._register = _register(register, _modified(register))
        self._policy = policy
        self._state = folder / _STATE_FILE
        self._lock = folder / _LOCK_FILE
        self._durable = durable

    def offer(self, request: SumRequest) -> SumReply:
        """Offer fresh keys."""
        with self._client() as client:
            offer = client.offer(OfferRequest.decode(request.body))
        return SumReply(offer.encode())

    def share(self, request: SumShareRequest) -> SumReply:
        """Share keys for a sum whose terms are those of the run's configuration."""
        shared = ShareRequest.decode(request.body)
        terms, config = shared.terms, _hash(request.config)
        secure = RunConfig.from_json(request.config).secure
        if secure is None:
            raise SumRefused("The run's configuration has no secure sums.")
        expected = sum_terms(
            secure,
            terms.instance,
            cohort=terms.cohort,
            model=request.model,
            config=config,
            size=terms.size,
            clients=terms.clients,
        )
        if terms != expected:
            raise SumRefused("The terms of the sum are not those of the run's configuration.")
        with self._client() as client:
            reply = client.share(shared, model=request.model, config=config)
        return SumReply(reply.encode())

    def upload(
        self,
        request: MaskedTrainRequest | MaskedEvaluateRequest,
        purpose: Purpose,
        compute: Callable[[], Contribution],
    ) -> tuple[bytes, MaskedVector]:
        """Compute what the sum is over; return it masked, and the message that goes with it."""
        upload = UploadRequest.decode(request.body)
        with self._client() as client:
            terms = _require_agreed(client.terms, request, purpose)
            client.check_upload(upload)
            contribution = compute()
            seed = RunConfig.from_json(request.config).seed
            rounding = rounding_key(seed, purpose, self._identity.device, request.round)
            vector = encode_contribution(terms, contribution.delta, contribution.figures, rounding)
            reply = client.mask(upload, vector)
        return reply.encode(), vector

    def survivors(self, request: SumRequest) -> SumReply:
        """Sign who failed."""
        with self._client() as client:
            reply = client.sign_survivors(SurvivorsRequest.decode(request.body))
        return SumReply(reply.encode())

    def unmask(self, request: SumRequest) -> SumReply:
        """Give the shares that unmask the sum."""
        with self._client() as client:
            reply = client.unmask(UnmaskRequest.decode(request.body))
        return SumReply(reply.encode())

    @contextmanager
    def _client(self) -> Iterator[SumClient]:
        """Yield the protocol's side of the device; at the end what it knows is on the disk.

        A block that ends with an error leaves the file as it was.
        """
        with _locked(self._lock):
            remove_partial(self._state)  # it may hold secrets of a sum
            try:
                state = self._state.read_bytes()
            except FileNotFoundError:
                state = b""
            client = SumClient(self._identity, self._register, self._policy, state)
            yield client
            with atomic_write(self._state, 0o600, durable=self._durable) as file:
                file.write(client.state())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep every other step of the device out until the block, or the process, ends.

    A step that read the state before another wrote it would put the older one back.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise FedspkError(f"{path}: cannot be written ({error.strerror}).") from error
    with os.fdopen(descriptor, "rb"):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SumRefused(
                "This device is still at another step of a secure sum; ask again when that ends."
            ) from None
        yield


def _require_agreed(
    terms: Terms | None,
    request: MaskedTrainRequest | MaskedEvaluateRequest,
    purpose: Purpose,
) -> Terms:
    """Return the terms of the sum under way if they are about just this computation.

    Masks cancel only among devices that agree on the terms: none can be given a model of its own.
    """
    asked = (purpose, request.round, request.model, _hash(request.config))
    if terms is None or asked != (terms.purpose, terms.round, terms.model, terms.config):
        raise SumRefused("The request is not what this device has agreed to sum.")
    return terms


def _hash(config: str) -> str:
    return sha256(config.encode()).hexdigest()


@lru_cache(maxsize=256)
def _identity(path: Path, _modified: int) -> Identity:
    return Identity.load(path)


@lru_cache(maxsize=8)
def _register(path: Path, _modified: int) -> DeviceRegister:
    return DeviceRegister.load(path)


def _modified(path: Path) -> int:
    """Return when a file was changed last: it is read again when that changes."""
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise FedspkError(f"{path}: cannot be read ({error.strerror}).") from error

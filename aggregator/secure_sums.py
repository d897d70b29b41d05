"""Secure sums over the grid: who is asked for which step, and what happens when somebody fails.

A sum goes through stages: offers of keys (most came with the sum before), shares, masked vectors,
signatures of the survivors, shares to unmask with. All cohorts of a round go through them together.
A device that fails at a stage has failed for this sum. A sum that too many have failed is tried
again with others in their place, but not once shares to unmask with have been asked for: what some
devices gave of theirs for one set of survivors, and a second sum of that round over other devices,
would differ by single devices.

A device that has dealt wrong shares takes no more part in the run. This is kept in memory: after a
restart such a device can spoil one more sum.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from aggregator.exchange import Reply
from aggregator.fleet import Fleet
from aggregator.record import RoundProgress
from fedspk.errors import FedspkError
from fedspk.rounds import MaskedReply, Purpose, Record, SumReply, SumRequest
from fedspk.secagg.config import SecureConfig
from fedspk.secagg.errors import MessageError, SumAborted
from fedspk.secagg.keys import DeviceRegister
from fedspk.secagg.masks import MaskedVector
from fedspk.secagg.messages import (
    PROTOCOL_VERSION,
    KeyOffer,
    OfferRequest,
    ShareRequest,
    SharesReply,
    SurvivorsReply,
    Terms,
    UnmaskReply,
    UploadReply,
    UploadRequest,
)
from fedspk.secagg.server import SumServer, check_offer, without_copies
from fedspk.secagg.unmask import MaskRemover
from fedspk.store import BlobStore


@dataclass(frozen=True)
class SumStage:
    """A finished stage of a round's secure sums: how many devices were asked, and answered."""

    round: int
    purpose: Purpose
    name: str
    asked: int
    answered: int
    seconds: float


OnStage = Callable[[SumStage], None]
_Place = tuple[Purpose, str]

_SUSPECT = "it has dealt wrong shares of its secrets in a secure sum"


@dataclass(frozen=True)
class SumTask:
    """What is to be summed in a round.

    next_round: for which the devices offer keys with their last message; None: not known yet.
    begin: called with all devices before they are asked; what it raises ends the sums.
    terms: returns the terms, for the cohort's number and size.
    share, upload: wrap the protocol's requests in what else the devices need to know.
    """

    purpose: Purpose
    round: int
    next_round: int | None
    begin: Callable[[Sequence[str]], None]
    terms: Callable[[OfferRequest, int, int], Terms]
    share: Callable[[ShareRequest], Record]
    upload: Callable[[UploadRequest], Record]


@dataclass(frozen=True)
class CohortSum:
    """The sum over the devices of a cohort that remained."""

    terms: Terms
    total: MaskedVector
    survivors: tuple[str, ...]


@dataclass
class Tally:
    """What the sums of a round took, retries included: seconds by stage, bytes both ways.

    `reasons` are why some could not be finished.
    """

    attempts: int = 0
    reasons: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0


class SecureSums:
    """The secure sums of one run.

    Args:
        fleet: the devices.
        config: the run's.
        register: file of the devices' public keys; it is read anew for every sum.
        blobs: where masked vectors that travel by hash lie; what it holds is forgotten.
        remover: takes masks off sums.
        on_stage: called after every stage.
    """

    def __init__(
        self,
        fleet: Fleet,
        config: SecureConfig,
        register: Path,
        blobs: BlobStore,
        remover: MaskRemover,
        on_stage: OnStage | None,
    ) -> None:
        self.fleet = fleet
        self.config = config
        self.blobs = blobs
        self.remover = remover
        self.on_stage = on_stage
        self._register = register
        self._run = ""
        self._offers: dict[_Place, tuple[OfferRequest, KeyOffer]] = {}
        self._latest: dict[_Place, tuple[int, int]] = {}
        self._start_run()
        blobs.clear()

    def collect(
        self,
        task: SumTask,
        cohorts: Sequence[Sequence[str]],
        spare: Sequence[str],
        progress: RoundProgress,
    ) -> tuple[list[CohortSum], Tally]:
        """Return the sums over the cohorts that could be finished, maybe none, and what it took.

        Args:
            task: what is summed.
            cohorts: the devices of each.
            spare: devices that may take the place of others.
            progress: gets the failures.

        Raises:
            FedspkError: the task may not even begin. When it may not begin once more, what is
                finished stays.
        """
        register, tally = DeviceRegister.load(self._register), Tally()
        waiting = {number: list(cohort) for number, cohort in enumerate(cohorts)}
        finished: dict[int, CohortSum] = {}
        spare = list(spare)
        for attempt in range(self.config.attempts):
            devices = [device for cohort in waiting.values() for device in cohort]
            try:
                task.begin(devices)
            except FedspkError as error:
                if attempt == 0:
                    raise
                tally.reasons.append(str(error))
                break
            instance = self._instance(task, attempt, devices)
            passage = _Passage(self, task, instance, register, progress, tally)
            finished |= passage.run(waiting)
            tally.reasons += [*passage.aborted.values(), *passage.lost.values()]
            waiting = {
                number: _replaced(waiting[number], passage.failed, spare)
                for number in passage.aborted
            }
            if not any(waiting.values()):
                break
        for reason in tally.reasons:
            progress.note(reason)
        return [finished[number] for number in sorted(finished)], tally

    def take_offer(self, device: str, instance: OfferRequest) -> KeyOffer | None:
        """Return the keys that the device has already offered for this very sum, once."""
        request, offer = self._offers.pop((instance.purpose, device), (None, None))
        return offer if request == instance else None

    def keep_offer(self, offer: KeyOffer, instance: OfferRequest) -> None:
        """Keep keys that a device has offered for a later sum."""
        self._offers[instance.purpose, offer.device] = instance, offer

    def note_request(self, devices: Iterable[str], instance: OfferRequest) -> None:
        """Remember that devices have been asked for keys."""
        for device in devices:
            self._latest[instance.purpose, device] = instance.round, instance.attempt

    def _instance(self, task: SumTask, attempt: int, devices: Sequence[str]) -> OfferRequest:
        """Return the name of a sum that all these devices will offer keys for.

        A device that has offered keys for a later sum of a run refuses an earlier one.
        """
        wanted = task.round, attempt
        if any(self._latest.get((task.purpose, each), wanted) > wanted for each in devices):
            self._start_run()
        return OfferRequest(PROTOCOL_VERSION, self._run, task.purpose, task.round, attempt)

    def _start_run(self) -> None:
        self._run = secrets.token_hex(16)
        self._offers.clear()
        self._latest.clear()


class _Passage:
    """Cohorts on their way through the stages, once.

    `aborted` are the cohorts that had to stop and may be tried again, by number, and why; `lost`
    those that were to be unmasked already; `failed` the devices that gave no usable answer at some
    stage.
    """

    def __init__(
        self,
        sums: SecureSums,
        task: SumTask,
        instance: OfferRequest,
        register: DeviceRegister,
        progress: RoundProgress,
        tally: Tally,
    ) -> None:
        self.aborted: dict[int, str] = {}
        self.lost: dict[int, str] = {}
        self.failed: set[str] = set()
        self._sums = sums
        self._task = task
        self._instance = instance
        self._next = None
        if task.next_round is not None:
            self._next = replace(instance, round=task.next_round, attempt=0)
        self._register = register
        self._progress = progress
        self._tally = tally
        self._offers: dict[str, KeyOffer] = {}
        self._servers: dict[int, SumServer] = {}
        self._server_of: dict[str, SumServer] = {}

    def run(self, cohorts: Mapping[int, Sequence[str]]) -> dict[int, CohortSum]:
        """Return the sums of the cohorts that come through, by number."""
        self._tally.attempts += 1
        devices = [device for cohort in cohorts.values() for device in cohort]
        self._gather_offers(devices)
        self._open(cohorts)
        shares = self._requests(self._share_requests)
        self._stage("share", "query.share", shares, SumReply, self._take_shares)
        uploads = self._requests(self._upload_requests)
        verb = f"{self._task.purpose}.masked"
        self._stage(self._task.purpose, verb, uploads, MaskedReply, self._take_vector)
        survivors = self._requests(self._survivors_requests)
        self._stage("survivors", "query.survivors", survivors, SumReply, self._take_signature)
        unmasking = self._requests(self._unmask_requests)
        self._stage("unmask", "query.unmask", unmasking, SumReply, self._take_unmasking)
        return self._finished()

    def _gather_offers(self, devices: Sequence[str]) -> None:
        """Take the offers that are there, and ask the other devices for theirs."""
        for device in devices:
            if offer := self._sums.take_offer(device, self._instance):
                self._offers[device] = offer
        record = SumRequest(self._instance.encode())
        missing = {device: record for device in devices if device not in self._offers}
        self._sums.note_request(missing, self._instance)
        self._stage("offer", "query.offer", missing, SumReply, self._take_offer)

    def _open(self, cohorts: Mapping[int, Sequence[str]]) -> None:
        """Begin the sum of every cohort, over the devices with an offer like no other's."""
        usable = without_copies(self._offers.values())
        self.failed |= self._offers.keys() - {offer.device for offer in usable}
        for number, devices in cohorts.items():
            offers = [offer for offer in usable if offer.device in set(devices)]
            if len(offers) < 2:
                self.aborted[number] = (
                    "A secure sum needs two devices or more; let more take part in a round, or "
                    "have updates sent in clear (--no-secure, secure = false)."
                )
                continue
            terms = self._task.terms(self._instance, number, len(offers))
            server = SumServer(terms, offers, self._register, self._sums.config.corrupt_fraction)
            self._servers[number] = server
            self._server_of |= dict.fromkeys(server.devices, server)

    def _requests(self, prepare: Callable[[SumServer], Mapping[str, Record]]) -> dict[str, Record]:
        """Return the requests of all cohorts; one that cannot go on leaves."""
        requests: dict[str, Record] = {}
        for number, server in list(self._servers.items()):
            try:
                requests |= prepare(server)
            except SumAborted as error:
                self.aborted[number] = str(error)
                del self._servers[number]
        return requests

    def _stage(
        self,
        name: str,
        message_type: str,
        requests: Mapping[str, Record],
        reply_type: type[Reply],
        take: Callable[[str, Reply], None],
    ) -> None:
        """Send the requests and take the replies as they come."""
        if not requests:
            return
        started, answered = time.monotonic(), set()
        trains = reply_type is MaskedReply
        timeout = None if trains else self._sums.config.stage_timeout_seconds
        ask = self._sums.fleet.ask
        for device, reply in ask(
            message_type, requests, reply_type, self._progress, timeout=timeout
        ):
            try:
                take(device, reply)
            except FedspkError as error:
                self._progress.failures.append(f"{device}: {error}")
            else:
                answered.add(device)
            self._tally.bytes_up += _size(reply)
        self._tally.bytes_down += sum(map(_size, requests.values()))
        self.failed |= requests.keys() - answered
        self._finish_stage(name, started, len(requests), len(answered))

    def _finish_stage(self, name: str, started: float, asked: int, answered: int) -> None:
        seconds = time.monotonic() - started
        self._tally.seconds[name] = self._tally.seconds.get(name, 0.0) + seconds
        if self._sums.on_stage is not None:
            task = self._task
            self._sums.on_stage(SumStage(task.round, task.purpose, name, asked, answered, seconds))

    def _share_requests(self, server: SumServer) -> dict[str, Record]:
        return dict.fromkeys(server.devices, self._task.share(server.share_request()))

    def _upload_requests(self, server: SumServer) -> dict[str, Record]:
        requests = server.close_sharing()
        return {device: self._task.upload(request) for device, request in requests.items()}

    def _survivors_requests(self, server: SumServer) -> dict[str, Record]:
        request = server.close_uploads()
        return dict.fromkeys(server.survivors, SumRequest(request.encode()))

    def _unmask_requests(self, server: SumServer) -> dict[str, Record]:
        requests = server.close_signatures()
        if self._next is not None:
            self._sums.note_request(requests, self._next)
        return {
            device: SumRequest(replace(request, next=self._next).encode())
            for device, request in requests.items()
        }

    def _take_offer(self, device: str, reply: SumReply) -> None:
        self._offers[device] = self._checked(device, KeyOffer.decode(reply.body), self._instance)

    def _take_shares(self, device: str, reply: SumReply) -> None:
        self._server_of[device].receive_shares(device, SharesReply.decode(reply.body))

    def _take_vector(self, device: str, reply: MaskedReply) -> None:
        server, beside = self._server_of[device], UploadReply.decode(reply.body)
        if not reply.blob:
            server.receive_vector(device, beside, reply.vector)
            return
        vector = self._sums.blobs.get(reply.blob)
        self._tally.bytes_up += vector.size
        try:
            server.receive_vector(device, beside, vector.data)
        finally:
            self._sums.blobs.remove(reply.blob)

    def _take_signature(self, device: str, reply: SumReply) -> None:
        self._server_of[device].receive_signature(device, SurvivorsReply.decode(reply.body))

    def _take_unmasking(self, device: str, reply: SumReply) -> None:
        unmasking = UnmaskReply.decode(reply.body)
        self._server_of[device].receive_unmask(device, unmasking)
        if self._next is not None and unmasking.offer is not None:
            offer = self._checked(device, unmasking.offer, self._next)
            self._sums.keep_offer(offer, self._next)

    def _checked(self, device: str, offer: KeyOffer, request: OfferRequest) -> KeyOffer:
        if offer.device != device:
            raise MessageError("the offer is another device's.")
        check_offer(offer, request, self._register)
        return offer

    def _finished(self) -> dict[int, CohortSum]:
        started, asked = time.monotonic(), len(self._servers)
        finished = {}
        for number, server in self._servers.items():
            try:
                total = server.finish(self._sums.remover)
            except SumAborted as error:
                self.lost[number] = str(error)
                for device in error.suspects:
                    self._sums.fleet.leave_out(device, _SUSPECT)
            else:
                finished[number] = CohortSum(server.terms, total, server.survivors)
        self._finish_stage("sum", started, asked, len(finished))
        return finished


def _replaced(cohort: Sequence[str], failed: set[str], spare: list[str]) -> list[str]:
    """Return the devices that did not fail, and in the others' place the first of `spare`."""
    kept = [device for device in cohort if device not in failed]
    missing = len(cohort) - len(kept)
    kept += spare[:missing]
    del spare[:missing]
    return kept


def _size(record: Record) -> int:
    """Return the bytes of a message's content."""
    return sum(len(value) for value in vars(record).values() if isinstance(value, bytes | str))

"""A secure sum among devices in memory; tests may let devices fail and bend what is said.

Everything crosses as bytes. `bend_request` and `bend_reply` see every message on its way: they
return it, another one, or None to lose it. A device that loses a message or refuses one is silent
from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from msgspec.structs import replace

from fedspk.secagg.client import DevicePolicy, SumClient
from fedspk.secagg.errors import MessageError, SumAborted, SumRefused
from fedspk.secagg.keys import DeviceRegister, Identity
from fedspk.secagg.messages import (
    PROTOCOL_VERSION,
    KeyOffer,
    Message,
    OfferRequest,
    ShareRequest,
    SharesReply,
    SurvivorsReply,
    SurvivorsRequest,
    Terms,
    UnmaskReply,
    UnmaskRequest,
    UploadReply,
    UploadRequest,
)
from fedspk.secagg.parameters import full_graph
from fedspk.secagg.quantise import Quantiser
from fedspk.secagg.server import SumServer, check_offer
from fedspk.secagg.unmask import MaskRemover

STAGES = ("offer", "share", "upload", "sign", "unmask")
MODEL, CONFIG = "a" * 64, "b" * 64
LENIENT = DevicePolicy(minimum_cohort=2, corrupt_fraction=0.0)

REQUESTS: dict[str, type[Message]] = {
    "offer": OfferRequest,
    "share": ShareRequest,
    "upload": UploadRequest,
    "sign": SurvivorsRequest,
    "unmask": UnmaskRequest,
}
REPLIES: dict[str, type[Message]] = {
    "offer": KeyOffer,
    "share": SharesReply,
    "upload": UploadReply,
    "sign": SurvivorsReply,
    "unmask": UnmaskReply,
}

Bend = Callable[[str, str, Any], Any]


def unbent(stage: str, device: str, message: Any) -> Any:
    return message


def make_request(**changes: Any) -> OfferRequest:
    fields = {"version": PROTOCOL_VERSION, "run": "c0ffee", "purpose": "train"}
    return OfferRequest(**(fields | {"round": 3, "attempt": 0} | changes))


def make_terms(request: OfferRequest, clients: int, *, size: int = 6, **changes: Any) -> Terms:
    quantiser = Quantiser.for_cohort(
        size=size, counters=0, clients=clients, precision_bits=20, norm=1.0, maximum_weight=16
    )
    graph = full_graph(clients)
    fields = {
        "version": request.version,
        "run": request.run,
        "purpose": request.purpose,
        "round": request.round,
        "attempt": request.attempt,
        "cohort": 0,
        "model": MODEL,
        "config": CONFIG,
        "size": size,
        "counters": 0,
        "precision_bits": quantiser.precision_bits,
        "modulus_bits": quantiser.modulus_bits,
        "norm": 1.0,
        "maximum_weight": 16,
        "noise_scale": 0.0,
        "clients": clients,
        "degree": graph.degree,
        "threshold": graph.threshold,
    }
    return Terms(**(fields | changes))


@dataclass
class Simulation:
    """A cohort, its aggregator, and what has happened.

    fails: stage -> the devices that do not answer from that stage on.
    requests, replies, refusals: stage -> device -> the last message, or the error.
    """

    clients: int
    size: int = 6
    policy: DevicePolicy = LENIENT
    request: OfferRequest = field(default_factory=make_request)
    terms: dict[str, Any] = field(default_factory=dict)
    fails: Mapping[str, Collection[str]] = field(default_factory=dict)
    bend_request: Bend = unbent
    bend_reply: Bend = unbent
    next: OfferRequest | None = None
    restarts: bool = False
    remover: MaskRemover | None = None

    requests: dict[str, dict[str, Any]] = field(default_factory=dict)
    replies: dict[str, dict[str, Any]] = field(default_factory=dict)
    refusals: dict[str, dict[str, Exception]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = [f"device-{index:03d}" for index in range(self.clients)]
        self.identities = {name: Identity.generate(name) for name in self.names}
        self.register = DeviceRegister({n: i.public for n, i in self.identities.items()})
        self.devices = {name: self.start(name) for name in self.names}
        self.failed: set[str] = set()
        self.vectors: dict[str, Any] = {}
        self.server: SumServer | None = None

    def start(self, name: str, state: bytes = b"") -> SumClient:
        """Return the device as after a start of its process."""
        return SumClient(self.identities[name], self.register, self.policy, state)

    def run(self) -> Any:
        """Return the sum; SumAborted if it cannot be had."""
        self.run_to("unmask")
        assert self.server is not None
        return self.server.finish(self.remover)

    def run_to(self, last: str) -> None:
        """Go through the stages up to and including this one."""
        for stage in STAGES[: STAGES.index(last) + 1]:
            self.run_stage(stage)

    def run_stage(self, stage: str) -> None:
        """Ask all devices and take their answers."""
        self.ask(stage)
        self.answer(stage)

    def ask(self, stage: str) -> None:
        """Close the stage before and make this one's requests."""
        if stage == "share":
            self._gather_cohort()
        self.requests[stage] = getattr(self, f"_ask_{stage}")()

    def answer(self, stage: str) -> None:
        """Let the devices answer this stage's requests."""
        self.replies[stage], self.refusals[stage] = {}, {}
        self.failed |= set(self.fails.get(stage, ()))
        for name, request in self.requests[stage].items():
            if name not in self.failed:
                try:
                    self._exchange(stage, name, self.bend_request(stage, name, request))
                except (MessageError, SumRefused) as error:
                    self.refusals[stage][name] = error
                    self.failed.add(name)

    def deliver(self, stage: str, name: str, request: Any) -> Any:
        """Give a device a request, as bytes, and return its reply."""
        device = self.devices[name]
        request = REQUESTS[stage].decode(request.encode())
        if stage == "offer":
            reply: Message = device.offer(request)
        elif stage == "share":
            reply = device.share(request, model=MODEL, config=CONFIG)
        elif stage == "upload":
            vector = self.draw(name)
            masked = vector.copy()
            reply = device.mask(request, masked)
            self.vectors[name] = (vector, masked)
        elif stage == "sign":
            reply = device.sign_survivors(request)
        else:
            reply = device.unmask(request)
        if self.restarts:
            self.devices[name] = self.start(name, device.state())
        return reply

    def receive(self, stage: str, name: str, reply: Any) -> None:
        """Give the aggregator a reply, as bytes."""
        reply = REPLIES[stage].decode(reply.encode())
        if stage == "offer":
            check_offer(reply, self.request, self.register)
            self.replies[stage][name] = reply
            return
        assert self.server is not None
        if stage == "share":
            self.server.receive_shares(name, reply)
        elif stage == "upload":
            self.server.receive_vector(name, reply, self.vectors[name][1].tobytes())
        elif stage == "sign":
            self.server.receive_signature(name, reply)
        else:
            self.server.receive_unmask(name, reply)
        self.replies.setdefault(stage, {})[name] = reply

    def draw(self, name: str) -> Any:
        """Return the device's vector, of any numbers that fit the terms."""
        assert self.server is not None
        quantiser = self.server.terms.quantiser
        generator = np.random.default_rng(list(name.encode()))
        draws = generator.integers(2**32, size=quantiser.length, dtype=np.uint32)
        return draws.astype(quantiser.dtype)

    def plain_sum(self, survivors: Sequence[str]) -> Any:
        """Return what the sum should be."""
        vectors = [self.vectors[name][0] for name in survivors]
        return np.sum(vectors, axis=0, dtype=vectors[0].dtype)

    def _exchange(self, stage: str, name: str, request: Any) -> None:
        reply = None
        if request is not None:
            reply = self.bend_reply(stage, name, self.deliver(stage, name, request))
        if reply is None:
            self.failed.add(name)
        else:
            self.receive(stage, name, reply)

    def _gather_cohort(self) -> None:
        offers = list(self.replies["offer"].values())
        if len(offers) < 2:
            raise SumAborted("There are too few offers.")
        terms = make_terms(self.request, len(offers), size=self.size)
        terms = replace(terms, **self.terms)
        self.server = SumServer(terms, offers, self.register)

    def _ask_offer(self) -> dict[str, Any]:
        return dict.fromkeys(self.names, self.request)

    def _ask_share(self) -> dict[str, Any]:
        assert self.server is not None
        return dict.fromkeys(self.server.devices, self.server.share_request())

    def _ask_upload(self) -> dict[str, Any]:
        assert self.server is not None
        return dict(self.server.close_sharing())

    def _ask_sign(self) -> dict[str, Any]:
        assert self.server is not None
        request = self.server.close_uploads()
        return dict.fromkeys(self.server.survivors, request)

    def _ask_unmask(self) -> dict[str, Any]:
        assert self.server is not None
        requests = self.server.close_signatures()
        return {name: replace(request, next=self.next) for name, request in requests.items()}

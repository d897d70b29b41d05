"""Devices of secure sums that are nothing but their files between two steps.

    python secure_device_files.py FLEET_FOLDER DEVICE before|after < pickled (step, request)

takes one step in a process that is killed before, or after, the new state takes the old one's
place.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Collection
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from clients.enrolment import IDENTITY_FILE, REGISTER_FILE, enrol_simulated_fleet
from clients.secure import Contribution, SecureDevice
from fedspk.rounds import MaskedTrainRequest, RunConfig, SumRequest, SumShareRequest
from fedspk.secagg.client import DevicePolicy
from fedspk.secagg.contribution import Total, decode_total, sum_terms
from fedspk.secagg.keys import DeviceRegister, Identity
from fedspk.secagg.masks import MaskedVector
from fedspk.secagg.messages import (
    KeyOffer,
    OfferRequest,
    Proof,
    SharesReply,
    Signed,
    SurvivorsReply,
    SurvivorsRequest,
    UnmaskReply,
    UnmaskRequest,
    UploadReply,
    survivors_statement,
)
from fedspk.secagg.server import SumServer

STEPS = ("offer", "share", "upload", "survivors", "unmask")
MODEL, SIZE = "a" * 64, 4
INSTANCE = OfferRequest(1, "ab", "train", 4, 0)
_CONFIG = RunConfig().changed(secure={"norm": 100.0})
_REPLIES = {
    "offer": KeyOffer,
    "share": SharesReply,
    "survivors": SurvivorsReply,
    "unmask": UnmaskReply,
}


def open_device(folder: Path, name: str, *, durable: bool = False) -> SecureDevice:
    """Return the device as after a start of its process."""
    return SecureDevice(
        name,
        folder / name / IDENTITY_FILE,
        folder / REGISTER_FILE,
        DevicePolicy(),
        folder / name,
        durable=durable,
    )


def contribution(name: str) -> Contribution:
    """Return what the device puts into a sum: its index + 1 is its weight."""
    weight = int(name[-4:]) + 1
    figures = {"weight": weight, "loss": 0.5, "steps": 1, "seconds": 0.1}
    return Contribution(figures, np.full(SIZE, weight, np.float32))


def take(
    device: SecureDevice, name: str, step: str, request: Any
) -> tuple[Any, MaskedVector | None]:
    """Let a device take a step; return its answer, and its masked vector if it uploads."""
    if step == "upload":
        body, vector = device.upload(request, "train", lambda: contribution(name))
        return UploadReply.decode(body), vector
    return _REPLIES[step].decode(getattr(device, step)(request).body), None


class FileCohort:
    """A sum among devices that start anew for every step; the aggregator is in memory.

    given: every answer to "unmask" that left a device.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = [f"device-{index:04d}" for index in range(6)]
        self.given: dict[str, list[UnmaskReply]] = {name: [] for name in self.names}
        self._text = _CONFIG.to_json()
        self._proofs: dict[int, dict[int, bytes]] = {}
        self._offers: dict[str, KeyOffer] = {}
        self._server: SumServer | None = None
        self._requests: dict[tuple[str, str], Any] = {}
        enrol_simulated_fleet(folder, self.names)

    def begin(self, step: str) -> list[str]:
        """Close the step before; return who is asked for this one."""
        asked = getattr(self, f"_begin_{step}")()
        self._requests |= {(step, name): request for name, request in asked.items()}
        return list(asked)

    def answer(self, step: str, name: str) -> None:
        """Let a device answer and the aggregator have the answer."""
        device = open_device(self.folder, name)
        reply, vector = take(device, name, step, self.request(step, name))
        self.receive(step, name, reply, vector)

    def receive(self, step: str, name: str, reply: Any, vector: MaskedVector | None) -> None:
        """Let the aggregator have an answer."""
        index = self.names.index(name)
        if step == "offer":
            self._offers[name] = reply
        elif step == "share":
            self.server.receive_shares(name, reply)
        elif step == "upload":
            self._proofs[index] = {proof.index: proof.proof for proof in reply.proofs}
            assert vector is not None
            self.server.receive_vector(name, reply, vector)
        elif step == "survivors":
            self.server.receive_signature(name, reply)
        else:
            self.given[name].append(reply)
            self.server.receive_unmask(name, reply)

    def run_to(self, last: str) -> None:
        """Go through the steps before `last` and ask for it."""
        for step in STEPS[: STEPS.index(last)]:
            self.run(step)
        self.begin(last)

    def run(self, step: str, silent: Collection[str] = ()) -> None:
        """Have all that are asked for a step answer it, but for the silent ones."""
        for name in self.begin(step):
            if name not in silent:
                self.answer(step, name)

    def request(self, step: str, name: str) -> Any:
        """Return what a device was asked."""
        return self._requests[step, name]

    def finish(self) -> Total:
        """Return the sum."""
        return decode_total(self.server.terms, self.server.finish(), len(self.server.survivors))

    def force(self, name: str, dead: tuple[int, ...]) -> tuple[SumRequest, SumRequest]:
        """Return requests to sign such survivors and to unmask, which everybody else has signed."""
        me, context = self.names.index(name), self._context
        statement = survivors_statement(context, dead)
        signatures = tuple(
            Signed(index, Identity.load(self.folder / other / IDENTITY_FILE).sign(statement))
            for index, other in enumerate(self.names)
            if index != me and index not in dead
        )
        proofs = tuple(
            Proof(sender, proofs[me])
            for sender, proofs in sorted(self._proofs.items())
            if me in proofs
        )
        survivors = SurvivorsRequest(context, dead)
        unmask = UnmaskRequest(context, signatures, proofs)
        return SumRequest(survivors.encode()), SumRequest(unmask.encode())

    @property
    def server(self) -> SumServer:
        assert self._server is not None
        return self._server

    def _begin_offer(self) -> dict[str, Any]:
        return dict.fromkeys(self.names, SumRequest(INSTANCE.encode()))

    def _begin_share(self) -> dict[str, Any]:
        assert _CONFIG.secure is not None
        terms = sum_terms(
            _CONFIG.secure,
            INSTANCE,
            cohort=0,
            model=MODEL,
            config=sha256(self._text.encode()).hexdigest(),
            size=SIZE,
            clients=len(self._offers),
        )
        register = DeviceRegister.load(self.folder / REGISTER_FILE)
        self._server = SumServer(terms, list(self._offers.values()), register)
        body = self.server.share_request().encode()
        return dict.fromkeys(self._offers, SumShareRequest(body, MODEL, self._text))

    def _begin_upload(self) -> dict[str, Any]:
        uploads = self.server.close_sharing()
        self._context = next(iter(uploads.values())).context
        return {
            name: MaskedTrainRequest(MODEL, INSTANCE.round, 0, self._text, upload.encode())
            for name, upload in uploads.items()
        }

    def _begin_survivors(self) -> dict[str, Any]:
        request = SumRequest(self.server.close_uploads().encode())
        return dict.fromkeys(self.server.survivors, request)

    def _begin_unmask(self) -> dict[str, Any]:
        requests = self.server.close_signatures()
        return {name: SumRequest(request.encode()) for name, request in requests.items()}


def main(folder: Path, name: str, point: str) -> None:
    """Take a step and die of it."""
    step, request = pickle.load(sys.stdin.buffer)
    device = open_device(folder, name)
    replace = Path.replace

    def replace_and_die(path: Path, target: Path) -> None:
        if point == "after":
            replace(path, target)
        os.kill(os.getpid(), signal.SIGKILL)

    Path.replace = replace_and_die  # type: ignore[method-assign, assignment]
    take(device, name, step, request)
    sys.stdout.write("answered")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])

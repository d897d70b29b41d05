"""A whole secure sum through the ClientApp's handlers; prints what heavy libraries it imported.

    python torchless_sum.py FLEET_FOLDER

The devices "compute" a constant, since training needs torch.
"""

from __future__ import annotations

import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients import client_app
from clients.secure import Contribution
from fedspk.rounds import (
    RECORD,
    MaskedTrainRequest,
    RunConfig,
    SumReply,
    SumRequest,
    SumShareRequest,
)
from fedspk.secagg.contribution import decode_total, sum_terms
from fedspk.secagg.keys import DeviceRegister
from fedspk.secagg.messages import (
    KeyOffer,
    OfferRequest,
    SharesReply,
    SurvivorsReply,
    UnmaskReply,
    UploadReply,
)
from fedspk.secagg.server import SumServer
from simulations.flower_private import act_as_server

MODEL, SIZE = "a" * 64, 3


def main(folder: Path) -> None:
    act_as_server(1)
    contexts = {
        path.stem: Context(1, 2, {"device": str(path), "minimum-cohort": 2}, RecordDict(), {})
        for path in sorted(folder.glob("device-*.json"))
        if path.stem.count("-") == 1
    }
    config = RunConfig().to_json()

    def ask(name: str, verb: str, request) -> bytes:
        message = Message(RecordDict({RECORD: ConfigRecord(request.to_record())}), 2, verb)
        reply = client_app.app(message, contexts[name])
        assert not reply.has_error(), reply.error
        return SumReply.from_record(dict(reply.content[RECORD])).body

    instance = OfferRequest(1, "ab", "train", 1, 0)
    offers = [
        KeyOffer.decode(ask(name, "query.offer", SumRequest(instance.encode())))
        for name in contexts
    ]
    terms = sum_terms(
        RunConfig().secure,
        instance,
        cohort=0,
        model=MODEL,
        config=sha256(config.encode()).hexdigest(),
        size=SIZE,
        clients=len(offers),
    )
    server = SumServer(terms, offers, DeviceRegister.load(folder / "register.json"))
    shared = SumShareRequest(server.share_request().encode(), MODEL, config)
    for name in contexts:
        server.receive_shares(name, SharesReply.decode(ask(name, "query.share", shared)))
    for name, upload in server.close_sharing().items():
        request = MaskedTrainRequest(MODEL, 1, 0, config, upload.encode())
        body, vector = client_app._secure_device(contexts[name]).upload(request, "train", _compute)
        server.receive_vector(name, UploadReply.decode(body), vector)
    survivors = SumRequest(server.close_uploads().encode())
    for name in contexts:
        reply = SurvivorsReply.decode(ask(name, "query.survivors", survivors))
        server.receive_signature(name, reply)
    for name, unmask in server.close_signatures().items():
        body = ask(name, "query.unmask", SumRequest(unmask.encode()))
        server.receive_unmask(name, UnmaskReply.decode(body))
    total = decode_total(terms, server.finish(), len(contexts))
    assert total.figures["weight"] == 2 * len(contexts)
    heavy = {"torch", "ray", "librosa", "scipy", "dp_accounting"} & set(sys.modules)
    sys.stdout.write(" ".join(sorted(heavy)))


def _compute() -> Contribution:
    figures = {"weight": 2, "loss": 1.0, "steps": 1, "seconds": 0.1}
    return Contribution(figures, np.ones(SIZE, np.float32))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

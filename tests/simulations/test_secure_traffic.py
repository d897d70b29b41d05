"""Everything that the aggregator receives in a secure run: no single device can be read from it.

In the first round one device fails to upload, and the vector of another comes when it has been
declared dead; in the second one fails to share.
"""

from __future__ import annotations

import itertools
import logging
import pickle
import struct
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
import pytest
from flwr.app import Error, Message
from tiny_federation import tiny_config, tiny_fleet, tiny_nodes, tiny_store

from aggregator.federation import run_federation
from clients import local, secure
from fedspk.rounds import LONG_VALUES, RECORD
from fedspk.secagg import dealing
from fedspk.secagg.keys import KEY_BYTES, SIGNATURE_BYTES, AgreementKey
from fedspk.secagg.masks import add_masks, common_mask
from fedspk.secagg.messages import (
    BOX_BYTES,
    PROOF_BYTES,
    KeyOffer,
    ShareRequest,
    SharesReply,
    SurvivorsReply,
    UnmaskReply,
    UploadReply,
    sum_context,
)
from fedspk.secagg.shamir import SHARE_BYTES
from fedspk.secagg.unmask import MaskRemover
from fedspk.store import BlobStore
from simulations.executors import SerialExecutor
from simulations.grid import LocalGrid

_DEVICES = 7
_FAILED, _LATE = 2, 5  # in the first round
_SILENT = 3  # in the second
_REPLIES = {
    "query.offer": KeyOffer,
    "query.share": SharesReply,
    "train.masked": UploadReply,
    "evaluate.masked": UploadReply,
    "query.survivors": SurvivorsReply,
    "query.unmask": UnmaskReply,
}
_REPLY_FIELDS = {
    "query.describe": {"device"},
    **{kind: {"body"} for kind in _REPLIES},
    "train.masked": {"body", "blob", "vector"},
    "evaluate.masked": {"body", "blob", "vector"},
}


class _Recorder(LocalGrid):
    """Keeps every reply with its device's number, and the blobs that it names.

    Two replies are lost, so that the aggregator must count their senders dead.
    """

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.replies = []
        self.bodies = []
        self.vectors = {}
        self.cohorts = {}
        self.everything = b""
        self._requests = {}
        self._lost = [("train.masked", "1", _LATE), ("query.share", "2", _SILENT)]

    def push_messages(self, messages):
        messages = list(messages)
        for message in messages:
            if message.metadata.message_type == "query.share":
                request = ShareRequest.decode(message.content[RECORD]["body"])
                self.cohorts[request.terms.purpose, request.terms.round] = request
        names = list(super().push_messages(messages))
        self._requests |= dict(zip(names, messages, strict=True))
        return names

    def pull_messages(self, message_ids):
        return [self._recorded(reply) for reply in super().pull_messages(message_ids)]

    def _recorded(self, reply):
        if reply.has_error():
            return reply
        place = kind, group, device = (
            reply.metadata.message_type,
            reply.metadata.group_id,
            reply.metadata.src_node_id - 2,
        )
        assert set(reply.content) <= {RECORD, LONG_VALUES}
        record = dict(reply.content[RECORD])
        for name, array in reply.content.get(LONG_VALUES, {}).items():
            record[name] = array.data
        self.replies.append((kind, set(record)))
        self.everything += pickle.dumps(reply)
        if kind in _REPLIES:
            self.bodies.append((kind, record["body"]))
        if kind.endswith(".masked"):
            store = BlobStore(self._run_config["store"])
            blob = record["vector"] or bytes(store.get(record["blob"]))
            self.everything += blob
            self.vectors[kind.removesuffix(".masked"), int(group), device] = blob
        if place in self._lost:
            self._lost.remove(place)
            request = self._requests[reply.metadata.reply_to_message_id]
            return Message(Error(0, "lost"), reply_to=request)
        return reply


@dataclass
class _Traffic:
    """What a run's aggregator received and learned, and what its devices computed.

    deltas, quantised: of the training, by round and device.
    own_masks: by context and index.
    learned: by context, the survivors' seeds and the keys of those that failed.
    """

    grid: Any = None
    result: Any = None
    deltas: dict[tuple[int, int], Any] = field(default_factory=dict)
    quantised: dict[tuple[int, int], Any] = field(default_factory=dict)
    figures: list[dict[str, float]] = field(default_factory=list)
    own_masks: dict[tuple[bytes, int], Any] = field(default_factory=dict)
    learned: dict[bytes, Any] = field(default_factory=dict)

    def context(self, round_number):
        cohort = self.grid.cohorts["train", round_number]
        return sum_context(cohort.terms, cohort.roster)

    def masked(self, round_number, device):
        return np.frombuffer(self.grid.vectors["train", round_number, device], "<u4")

    def survivors(self, round_number):
        survived, _ = self.learned[self.context(round_number)]
        return [device for device, _ in survived]

    def stripped(self, round_number, device):
        """Return a masked vector without the masks that the aggregator can compute."""
        context, index = self.context(round_number), device  # every device is in the cohort
        survived, failed = self.learned[context]
        roster = self.grid.cohorts["train", round_number].roster
        secrets = {each.device: AgreementKey(each.masking_key) for each in failed}
        if index in secrets:
            others = {*(each.device for each in survived), *secrets} - {index}
            agreed = {o: secrets[index].agree(roster[o].masking_key) for o in others}
            masks = []
        else:
            agreed = {o: key.agree(roster[index].masking_key) for o, key in secrets.items()}
            (seed,) = (each.seed for each in survived if each.device == index)
            masks = [dealing.own_mask(seed, context, index)._replace(negative=True)]
        masks += [common_mask(secret, context, other, index) for other, secret in agreed.items()]
        vector = self.masked(round_number, device).copy()
        add_masks(vector, masks)
        return vector


@pytest.fixture(scope="module", params=["file", "message"])
def traffic(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("traffic")
    secure_sums = {"norm": 1.0, "maximum_weight": 1 << 17}
    config = tiny_config(update_transport=request.param, secure=secure_sums)
    paths = tiny_fleet(folder / "fleet", _DEVICES)
    store, initial = tiny_store(folder / "store", config)
    grid = _Recorder(
        "clients.client_app:app",
        tiny_nodes(paths),
        SerialExecutor(),
        run_config={"store": str(folder / "store")},
    )
    noted = _Traffic(grid)
    update, encode = local.local_update, secure.encode_contribution
    own_mask, remove = dealing.own_mask, MaskRemover.remove
    training = []

    def noting_update(dataset, vector, config, *, round_number, best_round):
        if (round_number, dataset.index) == (1, _FAILED):
            raise RuntimeError("the power is cut")
        found = update(dataset, vector, config, round_number=round_number, best_round=best_round)
        training.append(dataset.index)
        noted.deltas[round_number, dataset.index] = found.delta
        return _with_telling_figures(found, dataset.index)

    def noting_encode(terms, delta, figures, rounding):
        vector = encode(terms, delta, figures, rounding)
        noted.figures.append(dict(figures))
        if terms.purpose == "train":
            noted.quantised[terms.round, training[-1]] = vector.copy()
        return vector

    def noting_own_mask(seed, context, index):
        noted.own_masks[context, index] = own_mask(seed, context, index)
        return noted.own_masks[context, index]

    def noting_remove(remover, total, context, survived, failed):
        noted.learned[context] = survived, failed
        remove(remover, total, context, survived, failed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "local_update", noting_update)
        patch.setattr(secure, "encode_contribution", noting_encode)
        patch.setattr(dealing, "own_mask", noting_own_mask)
        patch.setattr(MaskRemover, "remove", noting_remove)
        noted.result = run_federation(
            grid,
            config,
            store,
            folder / "run",
            initial=initial,
            register=folder / "fleet" / "register.json",
        )
    return noted


def _with_telling_figures(update, index):
    """Return a device's update with figures that no other number is by chance."""
    result = replace(update.result, steps=1_234_567 + 7919 * index, seconds=54_321.125 + index)
    return replace(update, weight=100_003.0 + 1009 * index, result=result)


def test_two_rounds_came_through_and_those_who_failed_came_back(traffic):
    history = traffic.result.history
    assert [(record.answered, record.asked) for record in history[1:]] == [(5, 7), (6, 7)]
    assert traffic.survivors(1) == [0, 1, 3, 4, 6]
    assert traffic.survivors(2) == [0, 1, 2, 4, 5, 6]
    assert [each.device for each in traffic.learned[traffic.context(1)][1]] == [_FAILED, _LATE]


def test_replies_have_only_the_fields_that_they_may_have(traffic):
    for kind, fields in traffic.grid.replies:
        assert fields == _REPLY_FIELDS[kind]
    assert {kind for kind, _ in traffic.grid.replies} == set(_REPLY_FIELDS)


def test_no_message_has_room_for_a_figure(traffic):
    """Its numbers are places in the cohort, its words names, and its bytes keys and the like."""
    kinds = {kind.__name__ for kind in _REPLIES.values()}
    names = {f"device-{index:04d}" for index in range(_DEVICES)}
    lengths = {KEY_BYTES, SIGNATURE_BYTES, BOX_BYTES, PROOF_BYTES, SHARE_BYTES}
    assert {kind for kind, _ in traffic.grid.bodies} == set(_REPLIES)
    for kind, body in traffic.grid.bodies:
        assert _REPLIES[kind].decode(body).encode() == body
        for value in _leaves(msgspec.msgpack.decode(body)):
            if isinstance(value, bytes):
                assert len(value) in lengths
            else:
                assert value is None or value in kinds | names | set(range(_DEVICES))


def test_a_masked_update_tells_nothing_of_the_update(traffic):
    assert {(r, d) for p, r, d in traffic.grid.vectors if p == "train"} == traffic.deltas.keys()
    for place, delta in traffic.deltas.items():
        seen = traffic.masked(*place)
        _assert_unrelated(seen, delta)
        # And the vector is as evenly spread as random numbers are: mean and spread of uniforms.
        mean = seen[: delta.size].mean(dtype=np.float64) / 2**32
        assert abs(mean - 0.5) < 5 / np.sqrt(12 * delta.size)


def test_the_masks_that_the_aggregator_learns_are_not_enough(traffic):
    """Without the survivors' own masks, and all that those who failed had, an update is hidden."""
    for round_number, device in traffic.deltas:
        stripped = traffic.stripped(round_number, device)
        _assert_unrelated(stripped, traffic.deltas[round_number, device])


def test_just_the_sum_is_left_without_those_masks(traffic):
    """What the test above strips is all that there is to strip."""
    for round_number in (1, 2):
        survivors = traffic.survivors(round_number)
        stripped = sum(traffic.stripped(round_number, device) for device in survivors)
        plain = sum(traffic.quantised[round_number, device] for device in survivors)
        assert np.array_equal(stripped, plain)


def test_a_late_vector_of_a_device_declared_dead_lacks_only_its_own_mask(traffic):
    """Its other masks are computable by then: for this the own mask is there."""
    assert _LATE not in traffic.survivors(1)
    stripped = traffic.stripped(1, _LATE)
    _assert_unrelated(stripped, traffic.deltas[1, _LATE])
    own = traffic.own_masks[traffic.context(1), _LATE]
    add_masks(stripped, [own._replace(negative=True)])
    assert np.array_equal(stripped, traffic.quantised[1, _LATE])


def test_the_difference_of_two_devices_is_noise_too(traffic):
    """No two masks are alike, whatever is stripped of them."""
    places = sorted(traffic.deltas)
    for view in (traffic.masked, traffic.stripped):
        vectors = {place: view(*place) for place in places}
        for one, other in itertools.pairwise(places):
            difference = vectors[one] - vectors[other]
            _assert_unrelated(difference, traffic.deltas[one] - traffic.deltas[other])


def test_without_masks_the_same_vectors_would_tell_everything(traffic):
    """The tests above would notice: what is masked follows the update."""
    for place, delta in traffic.deltas.items():
        seen = traffic.quantised[place].view(np.int32)[: delta.size]
        assert np.corrcoef(seen, delta)[0, 1] > 0.9
        with pytest.raises(AssertionError):
            _assert_unrelated(traffic.quantised[place], delta)


def test_neither_updates_nor_figures_are_among_the_bytes(traffic):
    everything = traffic.grid.everything
    assert len(everything) > 20 * _DEVICES * 1000
    for delta in traffic.deltas.values():
        for start in range(0, delta.size - 8, delta.size // 20):
            assert delta[start : start + 8].tobytes() not in everything
    for vector in traffic.quantised.values():
        for start in (*range(0, vector.size - 8, vector.size // 20), vector.size - 8):
            piece = vector[start : start + 8]
            assert not piece.any() or piece.tobytes() not in everything
    for figures in traffic.figures:
        for value in figures.values():
            for code in _encodings(float(value)):
                assert code not in everything, value
    for record in traffic.result.history:
        assert "device-" not in repr(asdict(replace(record, failures=())))


def test_nothing_of_one_device_is_logged(traffic, tmp_path, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        config = tiny_config(rounds=1)
        paths = tiny_fleet(tmp_path / "fleet", 3)
        store, initial = tiny_store(tmp_path / "store", config)
        grid = LocalGrid(
            "clients.client_app:app",
            tiny_nodes(paths),
            SerialExecutor(),
            run_config={"store": str(tmp_path / "store")},
        )
        run_federation(
            grid,
            config,
            store,
            tmp_path / "run",
            initial=initial,
            register=tmp_path / "fleet" / "register.json",
        )
    told = caplog.text + "".join(capfd.readouterr())
    assert "device-000" not in told
    assert "loss" not in told


def _assert_unrelated(vector, delta):
    """Check that the correlation is at noise level, whatever sign the numbers are read with."""
    seen = vector[: delta.size]
    for numbers in (seen, seen.view(np.int32)):
        assert abs(np.corrcoef(numbers.astype(np.float64), delta)[0, 1]) < 5 / np.sqrt(delta.size)


def _encodings(value):
    """Return how a figure might be written, where that is no accident."""
    codes = [struct.pack("<d", value), struct.pack(">d", value)] if value else []
    texts = [repr(value)]
    for whole in (round(value * unit) for unit in (1, 1e3, 1e6)):
        if whole >= 100_000:
            codes += [struct.pack("<q", whole), struct.pack(">q", whole)]
            codes.append(msgspec.msgpack.encode(whole))
        texts.append(str(whole))
    return codes + [text.encode() for text in texts if len(text) > 6]


def _leaves(value):
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value

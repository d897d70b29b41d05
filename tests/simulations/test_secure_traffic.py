"""Everything that the aggregator receives in a secure run: no single device can be read from it."""

from __future__ import annotations

import logging
import pickle
from dataclasses import asdict

import numpy as np
import pytest
from tiny_federation import tiny_config, tiny_fleet, tiny_nodes, tiny_store

from aggregator.federation import run_federation
from clients import local, secure
from fedspk.rounds import LONG_VALUES, RECORD
from fedspk.store import BlobStore
from simulations.executors import SerialExecutor
from simulations.grid import LocalGrid

_DEVICES = 5
_REPLY_FIELDS = {
    "query.describe": {"device"},
    "query.offer": {"body"},
    "query.share": {"body"},
    "train.masked": {"body", "blob", "vector"},
    "evaluate.masked": {"body", "blob", "vector"},
    "query.survivors": {"body"},
    "query.unmask": {"body"},
}


class _Recorder(LocalGrid):
    """Keeps every reply with its device's number, and the blobs that it names."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.replies = []
        self.vectors = []
        self.everything = b""

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            kind, device = reply.metadata.message_type, reply.metadata.src_node_id - 2
            assert set(reply.content) <= {RECORD, LONG_VALUES}
            record = dict(reply.content[RECORD])
            for name, array in reply.content.get(LONG_VALUES, {}).items():
                record[name] = array.data
            self.replies.append((kind, device, set(record)))
            self.everything += pickle.dumps(reply)
            if kind.endswith(".masked"):
                store = BlobStore(self._run_config["store"])
                blob = record["vector"] or bytes(store.get(record["blob"]))
                self.everything += blob
                self.vectors.append((kind, int(reply.metadata.group_id), device, blob))
        return replies


@pytest.fixture(scope="module", params=["file", "message"])
def traffic(request, tmp_path_factory):
    """What a run's aggregator received, and what its devices computed."""
    folder = tmp_path_factory.mktemp("traffic")
    config = tiny_config(update_transport=request.param, secure={"norm": 1.0, "maximum_weight": 8})
    paths = tiny_fleet(folder / "fleet", _DEVICES)
    store, initial = tiny_store(folder / "store", config)
    grid = _Recorder(
        "clients.client_app:app",
        tiny_nodes(paths),
        SerialExecutor(),
        run_config={"store": str(folder / "store")},
    )
    computed, quantised, figures = {}, [], []
    update, encode = local.local_update, secure.encode_contribution

    def noting_update(dataset, vector, config, *, round_number, best_round):
        found = update(dataset, vector, config, round_number=round_number, best_round=best_round)
        computed[round_number, dataset.index] = found.delta
        return found

    def noting_encode(terms, delta, noted, rounding):
        vector = encode(terms, delta, noted, rounding)
        quantised.append(vector.tobytes())
        figures.append(noted)
        return vector

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "local_update", noting_update)
        patch.setattr(secure, "encode_contribution", noting_encode)
        result = run_federation(
            grid,
            config,
            store,
            folder / "run",
            initial=initial,
            register=folder / "fleet" / "register.json",
        )
    assert len(computed) == 2 * _DEVICES
    return grid, result, computed, quantised, figures


def test_replies_have_only_the_fields_that_they_may_have(traffic):
    grid, *_ = traffic
    for kind, _, fields in grid.replies:
        assert fields == _REPLY_FIELDS[kind]
    assert {kind for kind, _, _ in grid.replies} == set(_REPLY_FIELDS)


def test_a_masked_update_tells_nothing_of_the_update(traffic):
    grid, _, computed, *_ = traffic
    masked = {
        (round_number, device): np.frombuffer(blob, "<u4")
        for kind, round_number, device, blob in grid.vectors
        if kind == "train.masked"
    }
    assert masked.keys() == computed.keys()
    for place, delta in computed.items():
        seen = masked[place][: delta.size].astype(np.float64)
        for shown in (seen, seen.astype(np.uint32).view(np.int32).astype(np.float64)):
            correlation = np.corrcoef(shown, delta)[0, 1]
            assert abs(correlation) < 5 / np.sqrt(delta.size)
        # And the vector is as evenly spread as random numbers are: mean and spread of uniforms.
        assert abs(seen.mean() / 2**32 - 0.5) < 5 / np.sqrt(12 * delta.size)


def test_no_device_can_be_told_from_the_sum_of_the_others_masks(traffic):
    """Subtracting any two devices' vectors leaves noise too: no two masks are alike."""
    grid, _, computed, *_ = traffic
    vectors = [
        np.frombuffer(b, "<u4") for k, r, _, b in grid.vectors if (k, r) == ("train.masked", 1)
    ]
    for one in range(_DEVICES):
        for other in range(one):
            difference = (vectors[one] - vectors[other]).view(np.int32).astype(np.float64)
            delta = computed[1, one] - computed[1, other]
            correlation = np.corrcoef(difference[: delta.size], delta)[0, 1]
            assert abs(correlation) < 5 / np.sqrt(delta.size)


def test_without_masks_the_same_vectors_would_tell_everything(traffic):
    """The tests above would notice: what is masked follows the update."""
    _, _, computed, quantised, _ = traffic
    for (_, device), delta in computed.items():
        found = [
            np.corrcoef(np.frombuffer(vector, "<i4")[: delta.size], delta)[0, 1]
            for vector in quantised
            if len(vector) > 4 * delta.size
        ]
        assert max(found) > 0.9, device


def test_neither_update_nor_figures_are_among_the_bytes(traffic):
    grid, result, computed, quantised, figures = traffic
    assert len(grid.everything) > 10 * _DEVICES * 1000
    for delta in computed.values():
        for start in range(0, delta.size - 8, delta.size // 50):
            assert delta[start : start + 8].tobytes() not in grid.everything
    for vector in quantised:
        assert vector[-32:] not in grid.everything  # the counters
        for start in range(0, max(1, len(vector) - 32), max(1, len(vector) // 50)):
            piece = vector[start : start + 32]
            assert not any(piece) or piece not in grid.everything
    for noted in figures:
        loss = float(noted["loss"])
        for text in (repr(loss), repr(round(loss, 6)), str(round(1e6 * loss))):
            assert text.encode() not in grid.everything
        for form in ("<f8", ">f8"):
            assert np.array(loss, form).tobytes() not in grid.everything
    for record in result.history:
        assert "device-" not in repr(asdict(record))


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

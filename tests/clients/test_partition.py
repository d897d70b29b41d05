from __future__ import annotations

import re

import pytest
from flwr.app import Message, RecordDict
from sounds import silence, write_speakers

from clients import partition
from clients.partition import partition_dataset
from fedspk.audio import save_audio
from fedspk.errors import FedspkError
from fedspk.run_folder import PUBLIC_SPEAKERS
from simulations.executors import SerialExecutor
from simulations.grid import LocalGrid

_CORPUS = "synthetic:speakers=10,utterances=4"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("cache")
        patch.setenv("FEDSPK_CACHE", str(root))
        yield root


def test_nodes_own_different_speakers_and_share_their_impostors(cache, tmp_path):
    first, second = (partition_dataset(_CORPUS, k, 2, tmp_path) for k in range(2))
    assert first.speaker != second.speaker
    assert first.impostor_labels == second.impostor_labels
    assert set(first.impostor_labels) == set(range(PUBLIC_SPEAKERS))
    assert len(first.owner_train) + len(first.owner_validation) == 4
    rows = [row for variants in first.impostors for row in variants]
    shared = second.table.gather([row for variants in second.impostors for row in variants])
    assert (first.table.gather(rows) == shared).all()
    assert first.table.shape[1:] == (350, 80)


def test_a_node_s_data_are_drawn_once(cache, tmp_path):
    first = partition_dataset(_CORPUS, 0, 2, tmp_path)
    assert partition_dataset("synthetic:speakers=1", 0, 2, tmp_path) == first


def test_a_corpus_with_too_few_speakers_is_one_clear_error(cache, tmp_path):
    with pytest.raises(FedspkError, match="11 are needed"):
        partition_dataset(_CORPUS, 0, 3, tmp_path)


def test_speakers_without_usable_sound_are_left_out_or_named(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(partition, "PUBLIC_SPEAKERS", 2)
    write_speakers(tmp_path / "people", speakers=4, utterances=4)
    for path in (tmp_path / "people" / "s2").iterdir():
        save_audio(path, silence(2))
    first = partition_dataset(str(tmp_path / "people"), 0, 2, tmp_path)
    assert set(first.impostor_labels) == {1}
    for path in (tmp_path / "people" / "s1").iterdir():
        path.write_text("no sound")
    with pytest.raises(FedspkError, match=r"of s1 can be used \(4 not audio, 4 silent\)"):
        partition_dataset(str(tmp_path / "people"), 1, 2, tmp_path)


def test_a_node_without_any_configured_data_draws_them_from_the_corpus(cache):
    grid = LocalGrid(
        "clients.client_app:app", [{}, {}], SerialExecutor(), run_config={"corpus": _CORPUS}
    )
    messages = [Message(RecordDict(), node, "query.describe") for node in grid.get_node_ids()]
    replies = [reply.content["fedspk"] for reply in grid.send_and_receive(messages)]
    assert [reply["device"] for reply in replies] == ["device-0000", "device-0001"]
    assert (cache / "flower" / "run-1" / "devices" / "device-0001.json").exists()


def test_a_node_without_data_or_corpus_says_what_to_set():
    grid = LocalGrid("clients.client_app:app", [{}], SerialExecutor())
    message = Message(RecordDict(), next(iter(grid.get_node_ids())), "query.describe")
    grid.send_and_receive([message])
    words = re.escape("set device (a file), devices (a folder) or corpus")
    with pytest.raises(FedspkError, match=words), grid.explained():
        raise FedspkError("Nobody answered.")

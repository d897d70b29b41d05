from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from tiny_federation import tiny_config, tiny_fleet, tiny_nodes, tiny_store

from aggregator.federation import run_federation
from clients import local
from clients.dataset import DeviceDataset
from fedspk.errors import FedspkError
from simulations.executors import SerialExecutor, open_executor
from simulations.grid import LocalGrid


class _RecordingGrid(LocalGrid):
    """A grid that keeps every byte that a device sends."""

    sent = b""

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            for record in reply.content.values() if reply.has_content() else ():
                for value in record.values():
                    self.sent += value if isinstance(value, bytes) else repr(value).encode()
            self.sent += pickle.dumps(reply)
        return replies


def _run(folder, executor, grid_type=LocalGrid, devices=3, **changes):
    paths = tiny_fleet(folder / "fleet", devices)
    config = tiny_config(**changes)
    store, initial = tiny_store(folder / "store", config)
    grid = grid_type(
        "clients.client_app:app",
        tiny_nodes(paths),
        executor,
        run_config={"store": str(folder / "store")},
    )
    register = folder / "fleet" / "register.json"
    result = run_federation(grid, config, store, folder / "run", initial=initial, register=register)
    return result, grid, [DeviceDataset.open(path) for path in paths], config, store


@pytest.mark.parametrize("secure", [True, False])
def test_results_have_the_same_bits_with_any_number_of_workers_and_either_transport(
    tmp_path, secure
):
    serial = _run(tmp_path / "a", SerialExecutor(), secure=secure)[0]
    with open_executor("inprocess", workers=2) as executor:
        by_file = _run(tmp_path / "b", executor, secure=secure)[0]
        changes = {"secure": secure, "update_transport": "message"}
        by_message = _run(tmp_path / "c", executor, **changes)[0]
    assert by_file.last_model == serial.last_model == by_message.last_model
    losses = [[r.validation_loss for r in x.history] for x in (serial, by_file, by_message)]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.slow
@pytest.mark.parametrize("secure", [True, False])
def test_results_have_the_same_bits_on_ray(tmp_path, secure):
    serial = _run(tmp_path / "a", SerialExecutor(), secure=secure)[0]
    with open_executor("ray", workers=2) as executor:
        on_ray = _run(tmp_path / "b", executor, secure=secure)[0]
    assert on_ray.last_model == serial.last_model


@pytest.mark.parametrize("secure", [True, False])
def test_no_feature_no_embedding_and_no_private_head_leaves_the_device(tmp_path, secure):
    torch.set_num_threads(1)
    changes = {"secure": secure, "update_transport": "message"}
    _, grid, devices, config, store = _run(tmp_path, SerialExecutor(), _RecordingGrid, **changes)
    secrets = {}
    for dataset in devices:
        rows = [row for variants in dataset.owner_train for row in variants]
        features = dataset.table.gather(rows)
        for number, vector in _models(tmp_path, store):
            model = local.restored_model(dataset, vector, config, round_number=number)
            model.eval()
            with torch.inference_mode():
                embeddings = model(features)
            for embedding in embeddings:
                secrets[f"embedding {dataset.device}"] = embedding[:4].numpy().tobytes()
            for name in model.local_parameters():
                head = model.state_dict()[name].flatten()[:4]
                secrets[f"{name} {dataset.device}"] = head.numpy().tobytes()
        for clip in features:
            secrets[f"feature {dataset.device}"] = clip.flatten()[:4].numpy().tobytes()
            secrets[f"half {dataset.device}"] = clip.flatten()[:8].half().numpy().tobytes()
    assert len(grid.sent) > 100_000  # the updates are in it
    assert secrets
    for name, secret in secrets.items():
        assert secret not in grid.sent, name
    for word in (b"speaker 0", str(tmp_path).encode()):
        assert word not in grid.sent


def _models(folder, store):
    from fedspk.files import read_json

    state = read_json(folder / "run" / "checkpoint.json")["state"]
    return [(0, store.get(state["initial"])), (state["round"], store.get(state["model"]))]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_says_its_kind_to_the_aggregator_and_the_rest_at_home(tmp_path, workers, capfd):
    config = tiny_config(rounds=1, minimum_reply_fraction=0.3, secure=False)
    store, initial = tiny_store(tmp_path / "store", config)
    (path,) = tiny_fleet(tmp_path / "fleet", 1)
    broken = tmp_path / "speaker Anna.json"
    broken.write_text('{"format": 1, "speaker": "Anna"}')
    nodes = [*tiny_nodes([path, broken]), {}]
    with open_executor("inprocess", workers=workers) as executor:
        grid = _RecordingGrid(
            "clients.client_app:app",
            nodes,
            executor,
            run_config={"store": str(tmp_path / "store")},
        )
        result = run_federation(grid, config, store, tmp_path / "run", initial=initial)
        with pytest.raises(FedspkError, match=r"1 of 3 .*FedspkError") as error:
            strict = config.changed(minimum_reply_fraction=1.0)
            run_federation(grid, strict, store, tmp_path / "strict", initial=initial)
        at_home = pytest.raises(FedspkError, match=r"1 of 3 .*speaker Anna\.json: fields are miss")
        with at_home, grid.explained():
            run_federation(grid, strict, store, tmp_path / "strict", initial=initial)
    assert result.history[1].answered == 1
    checkpoint = (tmp_path / "run" / "checkpoint.json").read_bytes()
    for word in (b"Anna", str(tmp_path).encode()):
        assert word not in grid.sent
        assert word not in checkpoint
        assert word not in str(error.value).encode()
    assert "Anna" not in capfd.readouterr().err


def test_an_error_is_written_to_the_device_s_own_log(tmp_path, caplog):
    from clients.client_app import app

    (message,) = _describe(LocalGrid("clients.client_app:app", [{}], SerialExecutor()))
    node = {"device": str(tmp_path / "speaker Anna.json")}
    reply = app(message, Context(1, 2, node, RecordDict(), {}))
    assert reply.error.reason == "the device failed (FedspkError); its own log says why"
    assert "speaker Anna.json: there is no such" in caplog.text


def test_devices_of_a_folder_are_dealt_by_partition(tmp_path):
    tiny_fleet(tmp_path / "fleet", 2)
    grid = LocalGrid(
        "clients.client_app:app",
        [{}, {}, {}],
        SerialExecutor(),
        run_config={"devices": str(tmp_path / "fleet")},
    )
    replies = list(grid.send_and_receive(_describe(grid)))
    assert [r.content["fedspk"]["device"] for r in replies[:2]] == ["device-0000", "device-0001"]
    with pytest.raises(FedspkError, match="use fewer nodes"), grid.explained():
        raise FedspkError("A node failed.")


def _describe(grid):
    return [Message(RecordDict(), node, "query.describe") for node in grid.get_node_ids()]


@pytest.mark.parametrize("module", ["clients.client_app", "aggregator.server_app"])
def test_importing_a_flower_app_brings_in_no_heavy_library(module):
    code = f"import sys, {module}; print(*sorted({{'torch', 'ray', 'librosa'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


class _WeighingGrid(LocalGrid):
    """A grid that keeps the length of the longest value that is sent as one piece."""

    longest = 0

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(message_ids))
        values = [value for reply in replies for value in reply.content["fedspk"].values()]
        self.longest = max(self.longest, *(len(v) for v in values if isinstance(v, bytes | str)))
        return replies


@pytest.mark.parametrize("secure", [True, False])
def test_updates_that_travel_in_messages_travel_in_pieces(tmp_path, secure):
    grid_type, changes = _WeighingGrid, {"secure": secure, "update_transport": "message"}
    result, grid, *_ = _run(tmp_path, SerialExecutor(), grid_type, rounds=1, **changes)
    assert result.bytes_up > 3 * 250_000
    assert grid.longest < 10_000

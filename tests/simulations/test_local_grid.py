from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

from fedspk.errors import FedspkError
from simulations.executors import SerialExecutor, open_executor
from simulations.flower_private import SERVER_NODE_ID, act_as_server, set_message_id
from simulations.grid import LocalGrid

_APP = "toy_client:app"


def _ask(grid: LocalGrid, kind: str, nodes: list[int]) -> list[Message]:
    messages = [Message(RecordDict(), node, kind) for node in nodes]
    return list(grid.send_and_receive(messages))


def test_every_message_gets_its_reply_in_order():
    grid = LocalGrid(_APP, [{}, {}, {}], SerialExecutor())
    nodes = list(grid.get_node_ids())
    replies = _ask(grid, "query.describe", nodes[::-1])
    assert [reply.metadata.src_node_id for reply in replies] == nodes[::-1]
    assert [reply.content["fedspk"]["device"] for reply in replies] == [
        "device-0002",
        "device-0001",
        "device-0000",
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_in_the_client_is_an_error_reply(workers):
    with open_executor("inprocess", workers=workers) as executor:
        grid = LocalGrid(_APP, [{"fault": "mute"}, {}], executor)
        bad, good = _ask(grid, "query.describe", list(grid.get_node_ids()))
    assert bad.has_error()
    assert bad.error.reason == "the device failed (ValueError); its own log says why"
    assert bad.metadata.reply_to_message_id
    assert good.has_content()


def test_a_node_s_state_lasts_between_messages(tmp_path):
    from fedspk.rounds import RECORD, RunConfig, TrainRequest
    from fedspk.weights import WeightStore

    store = WeightStore(tmp_path)
    model = store.put([1.0, 2.0])
    grid = LocalGrid(_APP, [{}], SerialExecutor(), run_config={"store": str(tmp_path)})
    (node,) = grid.get_node_ids()
    record = TrainRequest(model, 7, 0, RunConfig().to_json()).to_record()
    message = Message(RecordDict({RECORD: ConfigRecord(dict(record))}), node, "train")
    list(grid.send_and_receive([message]))
    (reply,) = _ask(grid, "query.rounds", [node])
    assert reply.content["fedspk"]["last"] == 7


def test_a_server_app_runs_to_its_end():
    seen = []
    app = ServerApp()

    @app.main()
    def main(grid, context):
        seen.append((list(grid.get_node_ids()), context.run_config["rounds"]))

    LocalGrid(_APP, [{}, {}], SerialExecutor(), run_config={"rounds": 4}).run_server_app(app)
    assert seen == [([2, 3], 4)]


@pytest.mark.parametrize(
    ("app", "sentence"),
    [("toy_client:nothing", "cannot be loaded"), ("toy_client:SIZE", "is not a flwr")],
)
def test_a_wrong_client_app_is_named(app, sentence):
    grid = LocalGrid(app, [{}], SerialExecutor())
    (reply,) = _ask(grid, "query.describe", list(grid.get_node_ids()))
    assert reply.error.reason == "the device failed (FedspkError); its own log says why"
    with pytest.raises(FedspkError, match=sentence), grid.explained():
        raise FedspkError("Nobody answered.")


def test_no_nodes_and_unknown_nodes_are_refused():
    with pytest.raises(FedspkError, match="one node or more"):
        LocalGrid(_APP, [], SerialExecutor())
    grid = LocalGrid(_APP, [{}], SerialExecutor())
    with pytest.raises(FedspkError, match="no node 99"):
        _ask(grid, "query.describe", [99])


def test_flower_takes_the_identity_and_the_message_id_that_we_set():
    act_as_server(run_id=42)
    message = Message(RecordDict(), 5, "train")
    set_message_id(message, "a name")
    assert message.metadata.run_id == 42
    assert message.metadata.src_node_id == SERVER_NODE_ID
    assert message.metadata.message_id == "a name"
    assert Message(RecordDict(), reply_to=message).metadata.reply_to_message_id == "a name"

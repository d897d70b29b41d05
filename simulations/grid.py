"""A Flower grid inside this program: the same ServerApp and ClientApp, no daemon, no network.

>>> from simulations.executors import SerialExecutor
>>> with SerialExecutor() as executor:
...     grid = LocalGrid("clients.client_app:app", [{}, {}], executor)
...     list(grid.get_node_ids())
[2, 3]
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any, TypeAlias

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedspk.errors import FedspkError
from fedspk.rounds import DEVICE_LOG, failure_reason
from simulations.executors import Executor
from simulations.flower_private import (
    CLIENT_APP_RAISED,
    SERVER_NODE_ID,
    Run,
    act_as_server,
    empty_run,
    set_message_id,
)

UserConfig = Mapping[str, bool | int | float | str]


class LocalGrid(Grid):
    """Nodes that exist only as a configuration and a state; their messages run on an executor.

    Replies come in the order of the messages, whatever the executor. An exception in the
    ClientApp, or a worker that dies, gives an error reply. As on a real device the reply names the
    kind of failure only; `explained` tells the person at the terminal the rest. The process that
    makes a grid is the ServerApp's: one run at a time.

    Args:
        client_app: `module:attribute` of the ClientApp, loaded where the task runs.
        nodes: one configuration a node; `partition-id` and `num-partitions` are added.
        executor: where the ClientApp runs.
        run_config: the run's configuration, the same for every node.
        run_id: the run's number.

    Raises:
        FedspkError: there is no node.
    """

    def __init__(
        self,
        client_app: str,
        nodes: Sequence[UserConfig],
        executor: Executor,
        *,
        run_config: UserConfig | None = None,
        run_id: int = 1,
    ) -> None:
        if not nodes:
            raise FedspkError("A federation needs one node or more.")
        self._client_app = client_app
        self._executor = executor
        self._run = empty_run(run_id)
        act_as_server(run_id)
        self._run_config = dict(run_config or {})
        self._messages_sent = 0
        self._replies: dict[str, Message] = {}
        self._log: list[str] = []
        self._group = ""
        self._contexts = {
            SERVER_NODE_ID + 1 + index: Context(
                run_id=run_id,
                node_id=SERVER_NODE_ID + 1 + index,
                node_config={"partition-id": index, "num-partitions": len(nodes), **node},
                state=RecordDict(),
                run_config=dict(self._run_config),
            )
            for index, node in enumerate(nodes)
        }

    def run_server_app(self, app: ServerApp) -> None:
        """Run a ServerApp on this grid to its end."""
        context = Context(
            run_id=self._run.run_id,
            node_id=SERVER_NODE_ID,
            node_config={},
            state=RecordDict(),
            run_config=dict(self._run_config),
        )
        with self.explained():
            app(self, context)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Add to a `FedspkError` of the block what the devices' logs say of the last round."""
        try:
            yield
        except FedspkError as error:
            if self._log:
                raise FedspkError(f"{error} On a device: {self._log[0]}") from error
            raise

    def set_run(self, run: Run) -> None:
        """Replace the run that messages belong to."""
        self._run = run
        act_as_server(run.run_id)

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message from the server to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run the messages to their replies, which `pull_messages` hands out, and return the ids.

        Raises:
            FedspkError: a message is for a node that does not exist.
        """
        sent = list(messages)
        for message in sent:
            self._messages_sent += 1
            set_message_id(message, f"message-{self._messages_sent}")
        tasks = [(self._client_app, message, self._context(message)) for message in sent]
        outcomes = self._executor.attempt(_handle, tasks)
        if sent and sent[0].metadata.group_id != self._group:
            self._group = sent[0].metadata.group_id
            self._log.clear()
        for message, outcome in zip(sent, outcomes, strict=True):
            self._take(message, outcome)
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return, once, the replies to these messages, in their order."""
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run the messages and return their replies; here nothing is lost, nothing times out."""
        del timeout
        return self.pull_messages(self.push_messages(messages))

    def _context(self, message: Message) -> Context:
        node_id = message.metadata.dst_node_id
        if node_id not in self._contexts:
            raise FedspkError(f"There is no node {node_id}; get_node_ids() names those there are.")
        return self._contexts[node_id]

    def _take(self, message: Message, outcome: _Outcome | Exception) -> None:
        if isinstance(outcome, Exception):
            self._log.append(str(outcome) or type(outcome).__name__)
            reply = Message(Error(CLIENT_APP_RAISED, failure_reason(outcome)), reply_to=message)
        else:
            reply, self._contexts[message.metadata.dst_node_id].state, log = outcome
            self._log += log
        message_id = message.metadata.message_id
        set_message_id(reply, f"reply-to-{message_id}")
        self._replies[message_id] = reply


_Outcome: TypeAlias = tuple[Message, RecordDict, list[str]]


def _handle(task: tuple[str, Message, Context]) -> _Outcome:
    """Return the reply, the node's state and what the node wrote into its log."""
    client_app, message, context = task
    with _device_log() as lines:
        reply = _load(client_app)(message, context)
    return reply, context.state, lines


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def _device_log() -> Iterator[list[str]]:
    """Collect what devices log in the block, instead of showing it."""
    handler = _Lines()
    log = logging.getLogger(DEVICE_LOG)
    log.addHandler(handler)
    log.propagate = False
    try:
        yield handler.lines
    finally:
        log.propagate = True
        log.removeHandler(handler)


@cache
def _load(client_app: str) -> ClientApp:
    module, _, attribute = client_app.partition(":")
    try:
        app: Any = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise FedspkError(f"The ClientApp {client_app!r} cannot be loaded: {error}.") from error
    if not isinstance(app, ClientApp):
        raise FedspkError(f"{client_app!r} is not a flwr.clientapp.ClientApp.")
    return app

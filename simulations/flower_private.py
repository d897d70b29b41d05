"""The private parts of Flower that an in-process grid needs, in one place.

Flower 1.41 stamps each instruction message with the identity of the task that creates it, which
its own runtime sets, and gives messages their ids on the server. Neither has a public interface.
"""

from __future__ import annotations

from typing import Any

from flwr.app import Message
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "CLIENT_APP_RAISED",
    "SERVER_NODE_ID",
    "Run",
    "act_as_server",
    "empty_run",
    "set_message_id",
]

SERVER_NODE_ID = 1
CLIENT_APP_RAISED = 2  # flwr.common.constant.ErrorCode.CLIENT_APP_RAISED_EXCEPTION


def act_as_server(run_id: int) -> None:
    """Let this process create messages of a run, as the process of its ServerApp."""
    identity: Any = TaskIdentity
    identity.task_id, identity.run_id, identity.node_id = 1, run_id, SERVER_NODE_ID


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message its id, as a SuperLink does."""
    message.metadata.__dict__["_message_id"] = message_id


def empty_run(run_id: int) -> Run:
    """Return a run that has no app bundle."""
    return Run.create_empty(run_id)

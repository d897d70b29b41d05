"""The device's own ClientApp, which may die: from one step of a round on it answers nothing.

Node configuration: `dies-in-round`; `dies-at`, how the step's message type begins, else "train".
"""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients import client_app

_STEPS = ("query.share", "train", "query.survivors", "query.unmask")


class _MortalApp(ClientApp):
    def __call__(self, message: Message, context: Context) -> Message:
        last = context.node_config.get("dies-in-round")
        if last is not None:
            number = int(message.metadata.group_id)
            deadly = _STEPS[_STEPS.index(str(context.node_config.get("dies-at", "train"))) :]
            if number > last or (
                number == last and message.metadata.message_type.startswith(deadly)
            ):
                raise RuntimeError("the power is cut")
        return client_app.app(message, context)


app = _MortalApp()

"""The device's own ClientApp, which may die: from the training of a round on it answers nothing.

Node configuration: `dies-in-round`.
"""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients import client_app


class _MortalApp(ClientApp):
    def __call__(self, message: Message, context: Context) -> Message:
        last = context.node_config.get("dies-in-round")
        if last is not None:
            number = int(message.metadata.group_id)
            trains = message.metadata.message_type.startswith("train")
            if number > last or (number == last and trains):
                raise RuntimeError("the power is cut")
        return client_app.app(message, context)


app = _MortalApp()

"""A client that adds a constant to the model."""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:  # noqa: ARG001
    """Return the model plus 0.001."""
    (model,) = message.content["arrays"].to_numpy_ndarrays()
    arrays = ArrayRecord([model + np.float32(1e-3)])
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

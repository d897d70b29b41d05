"""SpeakerModel: an encoder, the head it is trained with, and which of its parameters are federated.

Labels are classes: public speakers are 0 .. public - 1, device k is public + k. A binary head asks
only whether the label is the owner's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedspk.encoders import Encoder, build_encoder
from fedspk.errors import FedspkError
from fedspk.losses import AAMSoftmax, AMSoftmax, BinaryHead, ClassWeights, Head, SoftmaxHead
from fedspk.rounds import HeadKind, HeadSharing
from fedspk.seeds import derive

__all__ = ["HeadConfig", "HeadKind", "SpeakerModel", "build_model"]

_LOCAL_PARAMETERS = ("head.classes.device", "head.weight", "head.bias")
_BATCHNORM_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class HeadConfig:
    """What a model is trained to tell apart.

    Args:
        kind: "binary" (client against impostor), "softmax", "am" or "aam" over classes.
        public: number of public (or invented) speakers, classes 0 .. public - 1.
        devices: rows after them: 1 for a private one, all devices' for codewords or pooling.
        owner: which of the devices' rows is this device's owner.
        codeword_seed: when set, the devices' rows are fixed codewords of this seed.
        scale, margin: of am and aam.
    """

    kind: HeadKind = "binary"
    public: int = 0
    devices: int = 1
    owner: int = 0
    codeword_seed: int | None = None
    scale: float = 40.0
    margin: float = 0.6

    def __post_init__(self) -> None:
        if self.kind not in ("binary", "softmax", "am", "aam"):
            raise FedspkError(f"head {self.kind!r} is unknown; choose binary, softmax, am or aam.")
        if self.public < 0 or not 0 <= self.owner < max(1, self.devices):
            raise FedspkError(
                f"head with {self.public} public and {self.devices} device classes "
                f"cannot have owner {self.owner}."
            )

    @property
    def owner_label(self) -> int:
        """The owner's class label."""
        return self.public + self.owner


class SpeakerModel(nn.Module):
    """An encoder and a head; calling it gives the embedding (B, D) float32.

    `owner_label` may be set to another device's label, for codewords and pooled training.
    """

    head: Head

    def __init__(self, encoder: Encoder, head: HeadConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = head
        self.owner_label = head.owner_label
        self.head = _build_head(encoder.embedding_dim, head)

    @property
    def embedding_dim(self) -> int:
        """Length of an embedding."""
        return self.encoder.embedding_dim

    def forward(self, features: Tensor) -> Tensor:
        return self.encoder(features)

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of features (B, T, F) with class labels (B,) int64."""
        return self.loss_of_embedding(self.encoder(features), labels)

    def loss_of_embedding(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of embeddings (B, D) with class labels (B,) int64."""
        if self.config.kind == "binary":
            labels = labels == self.owner_label
        loss: Tensor = self.head(embedding, labels)
        return loss

    def owner_scores_of_embedding(self, embedding: Tensor) -> Tensor:
        """Return the classifier's score for the owner (B,) float32 of embeddings (B, D).

        Binary: the logit. Classes: the log odds log p / (1 - p) of the owner's posterior, that is
        the owner's logit less the log-sum-exp of all others (the bare logit if there are none).
        """
        logits = self.head.logits(embedding)
        if self.config.kind == "binary":
            return logits.squeeze(1)
        owner = logits[:, self.owner_label]
        if logits.shape[1] == 1:
            return owner
        others = torch.cat(
            [logits[:, : self.owner_label], logits[:, self.owner_label + 1 :]], dim=1
        )
        return owner - others.logsumexp(dim=1)

    def shared_parameters(
        self, head: HeadSharing = "local", *, batchnorm_statistics: bool = False
    ) -> list[str]:
        """Return the names of what is federated, in the order of `state_dict()`.

        "shared": everything learned. "local": all but the binary head or the devices' class rows,
        which stay home; the public speakers' rows are shared either way. Batch normalisation's
        running statistics belong to it only when asked for; fixed codewords never do.
        """
        learned = {name for name, _ in self.named_parameters()}
        names = []
        for name in self.state_dict():
            if name in learned:
                if head == "shared" or name not in _LOCAL_PARAMETERS:
                    names.append(name)
            elif batchnorm_statistics and name.endswith(_BATCHNORM_STATISTICS):
                names.append(name)
        return names

    def local_parameters(self, head: HeadSharing = "local") -> list[str]:
        """Return the names of what is learned and stays on the device."""
        shared = set(self.shared_parameters(head))
        return [name for name, _ in self.named_parameters() if name not in shared]

    def load_parameters(self, values: Mapping[str, Tensor]) -> None:
        """Copy `values` into the parameters and buffers of the same names, in place.

        Raises:
            FedspkError: a name is unknown or a shape differs.
        """
        state = self.state_dict()
        for name, value in values.items():
            if name not in state or state[name].shape != value.shape:
                expected = tuple(state[name].shape) if name in state else "no such parameter"
                raise FedspkError(
                    f"model parameter {name!r} has shape {tuple(value.shape)}, "
                    f"expected {expected}; use the model's own configuration."
                )
            state[name].copy_(value)


def build_model(
    encoder: str, head: HeadConfig, *, bins: int = 80, frames: int = 350, seed: int, **params: Any
) -> SpeakerModel:
    """Return a model with weights drawn from `seed`; the global random state is left untouched.

    The encoder's weights depend on the seed alone, not on the head.

    >>> model = build_model("vggm-small", HeadConfig("aam", public=3), seed=1)
    >>> model.local_parameters()
    ['head.classes.device']
    """
    network = build_encoder(
        encoder, bins=bins, frames=frames, seed=derive(seed, "encoder"), **params
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "head"))
        return SpeakerModel(network, head)


def _build_head(dim: int, config: HeadConfig) -> Head:
    if config.kind == "binary":
        return BinaryHead(dim)
    classes = ClassWeights(dim, config.public, config.devices, codeword_seed=config.codeword_seed)
    if config.kind == "softmax":
        return SoftmaxHead(classes)
    margin_head = AMSoftmax if config.kind == "am" else AAMSoftmax
    return margin_head(classes, config.scale, config.margin)

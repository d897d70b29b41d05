"""SpeechEngine: audio to speaker embeddings with one version of one model.

A model file is a safetensors file of a `SpeakerModel`'s weights whose metadata say which encoder
and which front end they belong to; its hash covers all three.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedspk.audio import crop_or_repeat
from fedspk.encoders import Encoder, build_encoder
from fedspk.errors import FedspkError
from fedspk.features import FrontEndConfig, build_front_end
from fedspk.model import SpeakerModel
from fedspk.weights import content_hash, flatten, load_model, save_model

FloatArray: TypeAlias = npt.NDArray[np.float32]

DESCRIPTION = "fedspk.model"
"""Where a model file's metadata hold the description."""

HEARD = "fedspk.heard"
"""Where they hold the marks of all utterances that the model was trained on, if they do."""

ENCODER_PREFIX = "encoder."
"""How the names of the encoder's weights begin in a model file."""


@dataclass(frozen=True)
class ModelDescription:
    """What a model is made of, apart from its weights: stored beside them, part of its hash.

    Raises:
        FedspkError: the parameters set what the front end or the weights do.
    """

    encoder: str = "vggm-small"
    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)
    encoder_params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("bins", "frames", "seed"):
            if name in self.encoder_params:
                raise FedspkError(
                    f"encoder_params sets {name}, which the front end or the weights decide."
                )

    def build(self) -> Encoder:
        """Return the encoder, with arbitrary weights.

        Raises:
            FedspkError: the encoder or one of its parameters is unknown.
        """
        return build_encoder(
            self.encoder,
            bins=self.front_end.bins,
            frames=self.front_end.frames,
            **self.encoder_params,
        )

    def to_json(self) -> str:
        """Return the description as one canonical line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelDescription:
        """Return the description that `to_json` wrote.

        Raises:
            FedspkError: the text describes no model that this version of fedspk knows.
        """
        try:
            fields = json.loads(text)
            if not isinstance(fields["encoder"], str):
                raise TypeError("the encoder's name is no text")
            if not isinstance(fields["encoder_params"], dict):
                raise TypeError("encoder_params are no fields")
            return cls(
                encoder=fields["encoder"],
                front_end=FrontEndConfig(**fields["front_end"]),
                encoder_params=fields["encoder_params"],
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FedspkError(f"the model's description is not understood ({error}).") from error


class SpeechEngine:
    """One model version at work: the same audio always gives the same embedding.

    Args:
        encoder: the network; put into evaluation mode.
        front_end: what it hears.
        model_hash: which version it is; embeddings of different hashes must never be compared.
        device: where to compute.
    """

    def __init__(
        self,
        encoder: Encoder,
        front_end: FrontEndConfig,
        model_hash: str,
        device: str | torch.device = "cpu",
    ) -> None:
        self.front_end = front_end
        self.model_hash = model_hash
        self.device = torch.device(device)
        self._encoder = encoder.to(self.device).eval()
        self._front_end = build_front_end(front_end).to(self.device).eval()

    @classmethod
    def load(cls, path: Path, device: str | torch.device = "cpu") -> SpeechEngine:
        """Return the engine of a model file.

        Raises:
            FedspkError: the file is missing, broken, or does not say which model it holds.
        """
        description, state = load_described(path)
        encoder = description.build()
        encoder.load_state_dict(_encoder_weights(state, encoder, path))
        return cls(encoder, description.front_end, model_hash(description, encoder), device)

    @property
    def embedding_dim(self) -> int:
        """Length of an embedding."""
        return self._encoder.embedding_dim

    def network(self) -> nn.Module:
        """Return front end and encoder as one module: audio (B, samples) to embeddings (B, D)."""
        return nn.Sequential(self._front_end, self._encoder).eval()

    def embed(self, audio: FloatArray) -> FloatArray:
        """Return the embedding (D,) float32, not normalised, of speech (samples,) at 16 kHz.

        The first `front_end.samples` are heard, a shorter sound is repeated; trim silence before.

        Raises:
            FedspkError: the audio is empty.
        """
        crop = torch.from_numpy(crop_or_repeat(audio, self.front_end.samples))
        with torch.inference_mode():
            features = self._front_end(crop.unsqueeze(0).to(self.device))
        embedding: FloatArray = self.embed_features(features)[0]
        return embedding

    def embed_features(self, features: Tensor, batch_size: int = 64) -> FloatArray:
        """Return the embeddings (N, D) float32 of features (N, frames, bins), batch by batch."""
        embeddings = np.empty((len(features), self.embedding_dim), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(features), batch_size):
                batch = features[start : start + batch_size].to(self.device)
                embeddings[start : start + len(batch)] = self._encoder(batch).float().cpu().numpy()
        return embeddings


def model_hash(description: ModelDescription, encoder: Encoder) -> str:
    """Return the SHA-256 of description, front end and encoder weights, in hex.

    The head is not part of it: it has no influence on embeddings.
    """
    state = encoder.state_dict()
    return described_hash(description, content_hash(flatten(state, sorted(state))))


def described_hash(description: ModelDescription, weights: str) -> str:
    """Return the hash of a model whose encoder's weights, in order of their names, hash so."""
    parts = [description.to_json(), description.front_end.content_hash(), weights]
    return content_hash("\n".join(parts).encode())


def save_described(
    path: Path,
    model: SpeakerModel,
    description: ModelDescription,
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write a model file and return its hash; `metadata` may say more about its origin.

    Raises:
        FedspkError: the file cannot be written.
    """
    save_model(path, model.state_dict(), {**(metadata or {}), DESCRIPTION: description.to_json()})
    return model_hash(description, model.encoder)


def load_described(path: Path) -> tuple[ModelDescription, dict[str, Tensor]]:
    """Return a model file's description and the `SpeakerModel` tensors in it.

    Raises:
        FedspkError: the file is missing, broken, or does not say which model it holds.
    """
    state, metadata = load_model(path)
    if DESCRIPTION not in metadata:
        raise FedspkError(
            f"{path}: is no speaker model: it does not say which encoder and front end it is for; "
            "use a model file written by fedspk."
        )
    try:
        return ModelDescription.from_json(metadata[DESCRIPTION]), state
    except FedspkError as error:
        raise FedspkError(f"{path}: {error}") from error


def _encoder_weights(
    state: Mapping[str, Tensor], encoder: Encoder, path: Path
) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for name, like in encoder.state_dict().items():
        found = state.get(ENCODER_PREFIX + name)
        if found is None or found.shape != like.shape:
            raise FedspkError(
                f"{path}: encoder weight {name!r} is missing or has another shape than described; "
                "the file is damaged."
            )
        weights[name] = found
    return weights

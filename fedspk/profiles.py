"""A speaker's profile: what of a voice is compared, and by which model version it was made.

Embeddings of two model versions live in two unrelated spaces: a profile is worth something under
its own version alone, so the two are never apart (Wang and Lopez Moreno, "Version control of
speaker recognition systems", 2020).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fedspk.errors import FedspkError
from fedspk.scoring import cosine_scores, make_profile

FloatArray: TypeAlias = npt.NDArray[np.float32]

_MAGIC = b"fedspk profile 1"
_HEAD = struct.Struct("<16s32sII")  # magic, model hash, utterances, dimension; then float32
_UNIT = 1e-3  # how far from 1 the length of a profile read may be


@dataclass(frozen=True, eq=False)
class SpeakerProfile:
    """The mean of a speaker's unit embeddings, scaled to length 1.

    Args:
        vector: (D,) float32.
        utterances: how many embeddings it is the mean of.
    """

    vector: FloatArray = field(repr=False)
    utterances: int

    @classmethod
    def of(cls, embeddings: FloatArray) -> SpeakerProfile:
        """Return the profile of embeddings (N, D).

        Raises:
            FedspkError: there is no embedding.
        """
        return cls(make_profile(embeddings), len(embeddings))


@dataclass(frozen=True)
class VersionedProfile:
    """A profile and the content hash (64 hex digits) of the model that made it."""

    model_hash: str
    profile: SpeakerProfile

    def score(self, embedding: FloatArray, model_hash: str) -> float:
        """Return the cosine with an embedding (D,) made by `model_hash`, in [-1, 1].

        Raises:
            FedspkError: the embedding is another model version's.
        """
        vector = self.profile.vector
        if model_hash != self.model_hash or embedding.shape != vector.shape:
            raise FedspkError(
                f"a profile of model {self.model_hash[:12]} cannot be compared with an embedding "
                f"of model {model_hash[:12]}; enrol the speaker again with that model."
            )
        return float(cosine_scores(vector[np.newaxis], embedding[np.newaxis]).item())

    def to_bytes(self) -> bytes:
        """Return the bytes that `from_bytes` reads: a fixed head, then little-endian float32."""
        vector = np.ascontiguousarray(self.profile.vector, dtype="<f4")
        model = bytes.fromhex(self.model_hash)
        head = _HEAD.pack(_MAGIC, model, self.profile.utterances, len(vector))
        return head + vector.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> VersionedProfile:
        """Read what `to_bytes` wrote.

        Raises:
            FedspkError: the bytes are not a whole profile of this format.
        """
        if len(data) > _HEAD.size:
            magic, model, utterances, size = _HEAD.unpack_from(data)
            if magic == _MAGIC and utterances > 0 and len(data) == _HEAD.size + 4 * size:
                vector = np.frombuffer(data, "<f4", offset=_HEAD.size).astype(np.float32)
                # A comparison with NaN is false.
                if abs(float(np.linalg.norm(vector)) - 1) < _UNIT:
                    return cls(model.hex(), SpeakerProfile(vector, utterances))
        raise FedspkError("a speaker profile is damaged or of another format; enrol again.")

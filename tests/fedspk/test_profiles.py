"""Profiles: what they are the mean of, their bytes, and no comparison across model versions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from nonsense import damaged

from fedspk.errors import FedspkError
from fedspk.profiles import SpeakerProfile, VersionedProfile

MODEL, OTHER = 64 * "a", 64 * "b"


def profile(seed: int = 0, utterances: int = 3) -> VersionedProfile:
    rng = np.random.default_rng(seed)
    embeddings = rng.standard_normal((utterances, 16)).astype(np.float32)
    return VersionedProfile(MODEL, SpeakerProfile.of(embeddings))


def test_a_profile_is_the_unit_mean_of_unit_embeddings() -> None:
    embeddings = np.array([[10, 0], [0, 1]], np.float32)
    made = SpeakerProfile.of(embeddings)
    np.testing.assert_allclose(made.vector, np.sqrt([0.5, 0.5]), rtol=1e-6)
    assert made.utterances == 2
    with pytest.raises(FedspkError, match="at least one"):
        SpeakerProfile.of(np.zeros((0, 2), np.float32))


def test_bytes_give_the_same_profile() -> None:
    made = profile()
    read = VersionedProfile.from_bytes(made.to_bytes())
    assert read.model_hash == MODEL
    assert read.profile.utterances == 3
    np.testing.assert_array_equal(read.profile.vector, made.profile.vector)


@given(damaged(profile().to_bytes()))
def test_damaged_bytes_are_refused_or_a_whole_profile(data: bytes) -> None:
    try:
        read = VersionedProfile.from_bytes(data)
    except FedspkError as error:
        assert "damaged" in str(error)
    else:
        assert abs(np.linalg.norm(read.profile.vector) - 1) < 1e-2
        assert read.to_bytes() == data


def test_a_profile_is_compared_under_its_own_model_alone() -> None:
    made = profile()
    assert made.score(3 * made.profile.vector, MODEL) == pytest.approx(1)
    with pytest.raises(FedspkError, match="cannot be compared"):
        made.score(made.profile.vector, OTHER)
    with pytest.raises(FedspkError, match="cannot be compared"):
        made.score(made.profile.vector[:8], MODEL)


def test_a_profile_is_not_printed() -> None:
    made = profile()
    assert str(made.profile.vector[0])[:6] not in repr(made)

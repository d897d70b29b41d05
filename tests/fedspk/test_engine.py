"""SpeechEngine: repeatable embeddings, and a model file that says what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedspk.engine import (
    ModelDescription,
    SpeechEngine,
    load_described,
    model_hash,
    save_described,
)
from fedspk.errors import FedspkError
from fedspk.features import FrontEndConfig
from fedspk.model import HeadConfig, SpeakerModel, build_model
from fedspk.weights import save_model

TINY = {"width": 0.125, "stem_channels": 8, "embedding_dim": 16}
DESCRIPTION = ModelDescription("vggm-small", FrontEndConfig(frames=60, bins=40), TINY)


def _model(seed: int = 1) -> SpeakerModel:
    head = HeadConfig("aam", public=2)
    return build_model("vggm-small", head, bins=40, frames=60, seed=seed, **TINY)


def _engine() -> SpeechEngine:
    return SpeechEngine(_model().encoder, DESCRIPTION.front_end, "0" * 64)


def _audio(samples: int = 12_000, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def test_same_audio_gives_the_same_embedding() -> None:
    engine = _engine()
    embedding = engine.embed(_audio())
    assert embedding.shape == (16,)
    assert embedding.dtype == np.float32
    assert np.array_equal(embedding, engine.embed(_audio()))
    assert not np.allclose(embedding, engine.embed(_audio(seed=1)))


def test_short_audio_is_repeated() -> None:
    audio = _audio(6_000)
    engine = _engine()
    assert np.array_equal(engine.embed(audio), engine.embed(np.tile(audio, 2)[:9_600]))


def test_batch_size_does_not_change_embeddings() -> None:
    engine = _engine()
    features = torch.randn(7, 60, 40, generator=torch.Generator().manual_seed(1))
    whole = engine.embed_features(features)
    assert whole.shape == (7, 16)
    np.testing.assert_allclose(engine.embed_features(features, batch_size=3), whole, atol=1e-4)
    assert engine.embed_features(features[:0]).shape == (0, 16)


def test_engine_of_a_model_file_embeds_as_the_model_does(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    digest = save_described(path, _model(), DESCRIPTION, {"parent": "none"})
    engine = SpeechEngine.load(path)
    assert engine.model_hash == digest
    assert engine.front_end == DESCRIPTION.front_end
    np.testing.assert_array_equal(engine.embed(_audio()), _engine().embed(_audio()))


def test_model_file_keeps_the_head_for_further_training(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_described(path, _model(), DESCRIPTION)
    description, state = load_described(path)
    assert description == DESCRIPTION
    assert state["head.classes.public"].shape == (2, 16)


def test_hash_covers_weights_encoder_and_front_end_but_not_the_head() -> None:
    encoder = _model().encoder
    front_end = FrontEndConfig(frames=60, bins=40, hop_s=0.012)
    hashes = {
        model_hash(DESCRIPTION, encoder),
        model_hash(DESCRIPTION, _model(seed=2).encoder),
        model_hash(ModelDescription("vggm-small", front_end, TINY), encoder),
    }
    assert len(hashes) == 3
    other_head = build_model("vggm-small", HeadConfig("binary"), bins=40, frames=60, seed=1, **TINY)
    assert model_hash(DESCRIPTION, other_head.encoder) in hashes


def test_undescribed_or_mismatched_file_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, _model().state_dict(), {})
    with pytest.raises(FedspkError, match="does not say which encoder"):
        SpeechEngine.load(path)
    save_model(path, _model().state_dict(), {"fedspk.model": '{"encoder": "vggm-small"}'})
    with pytest.raises(FedspkError, match="not understood"):
        SpeechEngine.load(path)
    wider = ModelDescription("vggm-small", DESCRIPTION.front_end, {**TINY, "embedding_dim": 32})
    save_described(path, _model(), wider)
    with pytest.raises(FedspkError, match="another shape"):
        SpeechEngine.load(path)

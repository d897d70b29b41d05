"""The training loop: equal to a bare one, learns, stops, restores the best, repeats its bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedspk.errors import FedspkError
from fedspk.model import HeadConfig, HeadKind, SpeakerModel, build_model
from fedspk.training import Batch, TrainingConfig, decayed_rate, fit
from fedspk.weights import flatten

BINS, FRAMES, SPEAKERS = 40, 40, 4
TINY = {"width": 0.125, "stem_channels": 8, "embedding_dim": 16}
CONFIG = TrainingConfig(
    steps=12, batch_size=8, learning_rate=0.05, final_learning_rate=0.005, weight_decay=5e-4
)


class _Voices:
    """Noise about one spectrum a speaker; ends after `limit` batches."""

    def __init__(self, limit: int = 1000) -> None:
        self.limit = limit

    def batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        spectra = torch.randn(SPEAKERS, 1, BINS, generator=torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(seed)
        for _ in range(self.limit):
            labels = torch.randint(0, SPEAKERS, (batch_size,), generator=generator)
            noise = torch.randn(batch_size, FRAMES, BINS, generator=generator)
            yield noise + spectra[labels], labels


def _model(kind: HeadKind = "aam") -> SpeakerModel:
    head = HeadConfig(kind, public=SPEAKERS - 1, scale=10.0, margin=0.2)
    return build_model("vggm-small", head, bins=BINS, frames=FRAMES, seed=1, **TINY)


def _vector(model: SpeakerModel) -> np.ndarray:
    return flatten(model.state_dict(), model.shared_parameters("shared"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_equals_a_bare_pytorch_loop() -> None:
    ours, bare = _model(), _model()
    fit(ours, _Voices(), replace(CONFIG, channels_last=False), seed=3)
    optimiser = torch.optim.SGD(bare.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4)
    batches = _Voices().batches(3, CONFIG.batch_size)
    for step in range(CONFIG.steps):
        optimiser.param_groups[0]["lr"] = 0.05 * 0.1 ** (step / (CONFIG.steps - 1))
        optimiser.zero_grad()
        bare.loss(*next(batches)).backward()
        optimiser.step()
    np.testing.assert_allclose(_vector(ours), _vector(bare), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_same_seed_gives_the_same_bits(precision: str) -> None:
    models = [_model(), _model(), _model()]
    for model, seed in zip(models, (3, 3, 4), strict=True):
        fit(model, _Voices(), replace(CONFIG, precision=precision), seed=seed)  # type: ignore[arg-type]
    first, again, other = (_vector(model).tobytes() for model in models)
    assert first == again
    assert first != other


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_learns_to_tell_voices_apart(precision: str) -> None:
    model = _model("softmax")
    config = replace(CONFIG, steps=40, precision=precision)  # type: ignore[arg-type]
    result = fit(model, _Voices(), config, seed=3, validate_every=10)
    losses = [point.training_loss for point in result.history]
    assert [point.step for point in result.history] == [10, 20, 30, 40]
    assert losses[-1] < 0.5 * losses[0]
    assert result.training_loss == pytest.approx(np.mean(losses))


def test_memory_layout_changes_nothing_but_rounding() -> None:
    vectors = []
    for channels_last in (False, True):
        model = _model()
        fit(model, _Voices(), replace(CONFIG, channels_last=channels_last), seed=3)
        vectors.append(_vector(model))
    np.testing.assert_allclose(*vectors, rtol=1e-3, atol=1e-4)


def test_restores_the_weights_of_the_best_validation() -> None:
    seen: list[np.ndarray] = []
    losses = iter([3.0, 1.0, 2.0, 2.5])

    def validation(model: SpeakerModel) -> float:
        assert not model.training
        seen.append(_vector(model))
        return next(losses)

    model = _model()
    result = fit(model, _Voices(), CONFIG, seed=3, validation=validation, validate_every=3)
    assert (result.best_step, result.best_validation_loss, result.steps) == (6, 1.0, 12)
    assert not result.early_stopped
    assert np.array_equal(_vector(model), seen[1])


def test_stops_when_validation_no_longer_improves() -> None:
    losses = iter([3.0, 1.0, 2.0, 2.5])
    config = replace(CONFIG, patience=1)
    result = fit(
        _model(), _Voices(), config, seed=3, validation=lambda _: next(losses), validate_every=2
    )
    assert (result.steps, result.best_step, result.early_stopped) == (6, 4, True)


def test_validation_does_not_change_training() -> None:
    plain, validated = _model(), _model()
    fit(plain, _Voices(), CONFIG, seed=3)
    countdown = iter(range(100, 0, -1))
    fit(
        validated,
        _Voices(),
        CONFIG,
        seed=3,
        validation=lambda _: float(next(countdown)),
        validate_every=1,
    )
    assert np.array_equal(_vector(plain), _vector(validated))


def test_proximal_term_keeps_the_weights_near_the_reference() -> None:
    distances = []
    for mu in (0.0, 1.0, 10.0):
        model = _model()
        start = _vector(model)
        reference = {name: p.detach().clone() for name, p in model.named_parameters()}
        fit(model, _Voices(), replace(CONFIG, proximal_mu=mu), seed=3, reference=reference)
        distances.append(float(np.linalg.norm(_vector(model) - start)))
    assert distances[0] > distances[1] > distances[2]


def test_no_steps_leave_the_model_as_it_was() -> None:
    model = _model()
    before = _vector(model)
    result = fit(model, _Voices(), replace(CONFIG, steps=0), seed=3)
    assert np.array_equal(_vector(model), before)
    assert (result.steps, result.training_loss, result.history) == (0, None, ())


def test_rate_decays_logarithmically_between_its_ends() -> None:
    config = TrainingConfig(steps=5)
    rates = [decayed_rate(step, config) for step in range(5)]
    assert rates[0] == pytest.approx(1e-2)
    assert rates[-1] == pytest.approx(1e-8)
    np.testing.assert_allclose(np.diff(np.log(rates)), np.log(1e-6) / 4)
    assert decayed_rate(0, TrainingConfig(steps=1)) == pytest.approx(1e-2)


def test_divergence_is_a_clear_error() -> None:
    config = replace(CONFIG, learning_rate=1e30, final_learning_rate=1e30)
    with pytest.raises(FedspkError, match="lower learning_rate"):
        fit(_model(), _Voices(), config, seed=3)


def test_batches_that_end_early_are_a_clear_error() -> None:
    with pytest.raises(FedspkError, match="ended after 5 of 12"):
        fit(_model(), _Voices(limit=5), CONFIG, seed=3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": -1}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 1e-9}, "final_learning_rate"),
        ({"precision": "float16"}, "precision"),
    ],
)
def test_impossible_configuration_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(FedspkError, match=message):
        TrainingConfig(**fields)  # type: ignore[arg-type]

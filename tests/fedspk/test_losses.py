"""Losses: against their equations, and finite everywhere an embedding can be."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedspk.errors import FedspkError
from fedspk.losses import (
    AAMSoftmax,
    AMSoftmax,
    BinaryHead,
    ClassWeights,
    Head,
    SoftmaxHead,
    codewords,
)

DIM, CLASSES = 16, 5


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _classes() -> ClassWeights:
    classes = ClassWeights(DIM, CLASSES - 1, 1)
    with torch.no_grad():
        classes.public.copy_(_random(CLASSES - 1, DIM, seed=1))
        classes.device.copy_(_random(1, DIM, seed=2))
    return classes


def _labels(count: int) -> Tensor:
    return torch.arange(count) % CLASSES


def test_binary_cross_entropy_equals_its_definition() -> None:
    head, embedding = BinaryHead(DIM), _random(6, DIM)
    labels = torch.tensor([1, 0, 1, 0, 0, 1])
    p = torch.sigmoid(head.logits(embedding).squeeze(1))
    expected = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    torch.testing.assert_close(head(embedding, labels), expected)


def test_softmax_equals_its_definition() -> None:
    head, embedding, labels = SoftmaxHead(_classes()), _random(6, DIM), _labels(6)
    p = torch.softmax(embedding @ head.classes.matrix().T, dim=1)
    torch.testing.assert_close(head(embedding, labels), -p[range(6), labels].log().mean())


@pytest.mark.parametrize("kind", ["am", "aam"])
def test_margin_softmax_equals_its_definition(kind: str) -> None:
    embedding, labels = _random(10, DIM), _labels(10)
    head: Head = (
        AMSoftmax(_classes(), 20.0, 0.3) if kind == "am" else AAMSoftmax(_classes(), 20.0, 0.3)
    )
    cosine = head.logits(embedding) / 20.0
    target = F.one_hot(labels, CLASSES).bool()
    angle = torch.acos(cosine)
    shifted = cosine - 0.3 if kind == "am" else torch.cos(angle + 0.3)
    expected = F.cross_entropy(20.0 * torch.where(target, shifted, cosine), labels)
    torch.testing.assert_close(head(embedding, labels), expected)


@pytest.mark.parametrize("margin_head", [AMSoftmax, AAMSoftmax])
def test_without_margin_it_is_softmax_of_scaled_cosines(
    margin_head: type[AMSoftmax | AAMSoftmax],
) -> None:
    head, embedding, labels = margin_head(_classes(), 10.0, 0.0), _random(6, DIM), _labels(6)
    expected = F.cross_entropy(head.logits(embedding), labels)
    torch.testing.assert_close(head(embedding, labels), expected)


@settings(max_examples=60, deadline=None)
@given(
    nearness=st.sampled_from([1.0, -1.0, 0.999999, -0.999999, 0.5, 0.0]),
    length=st.sampled_from([0.0, 1e-8, 1e-3, 1.0, 1e4]),
    scale=st.floats(1.0, 64.0),
    margin=st.floats(0.0, 1.2),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_aam_is_finite_on_beside_and_opposite_its_class_centre(
    nearness: float, length: float, scale: float, margin: float, dtype: torch.dtype
) -> None:
    head = AAMSoftmax(_classes(), scale, margin)
    centres = F.normalize(head.classes.matrix().detach(), dim=1)
    aside = F.normalize(_random(CLASSES, DIM, seed=3), dim=1)
    embedding = length * (nearness * centres + (1 - abs(nearness)) * aside)
    embedding = embedding.to(dtype).requires_grad_()
    loss = head(embedding, torch.arange(CLASSES))
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert embedding.grad is not None
    assert torch.isfinite(embedding.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


def test_aam_target_score_falls_all_the_way_as_the_angle_grows() -> None:
    head = AAMSoftmax(_classes(), 40.0, 0.6)
    cosine = torch.cos(torch.linspace(0.0, math.pi, 500, dtype=torch.float64))
    scores = head._with_margin(cosine)
    steps = scores.diff()
    assert (steps < 1e-9).all()
    assert steps.abs().max() < 0.02


@pytest.mark.parametrize("margin_head", [BinaryHead, SoftmaxHead, AMSoftmax, AAMSoftmax])
def test_loss_is_float32_under_bfloat16_autocast(margin_head: type[Head]) -> None:
    head = BinaryHead(DIM) if margin_head is BinaryHead else margin_head(_classes())  # type: ignore[call-arg]
    labels = _labels(6) % 2
    embedding = _random(6, DIM)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head(embedding, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, head(embedding, labels))


@pytest.mark.parametrize(("count", "dim"), [(25, 256), (256, 256), (7, 8)])
def test_codewords_are_orthogonal_unit_vectors(count: int, dim: int) -> None:
    words = codewords(count, dim, seed=3)
    torch.testing.assert_close(words @ words.T, torch.eye(count), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("count", "dim"), [(600, 256), (50, 100)])
def test_more_codewords_than_dimensions_stay_nearly_orthogonal(count: int, dim: int) -> None:
    words = codewords(count, dim, seed=3)
    cosines = words @ words.T - torch.eye(count)
    assert cosines.abs().max() < 7 / math.sqrt(dim)
    assert cosines.square().mean().sqrt() < 1.5 / math.sqrt(dim)


def test_a_codeword_depends_on_seed_and_index_only() -> None:
    assert torch.equal(codewords(3, 64, seed=1), codewords(300, 64, seed=1)[:3])
    assert not torch.equal(codewords(3, 64, seed=1), codewords(3, 64, seed=2))


def test_fixed_codewords_are_no_parameters() -> None:
    classes = ClassWeights(DIM, 2, 3, codeword_seed=1)
    assert [name for name, _ in classes.named_parameters()] == ["public"]
    assert classes.matrix().shape == (5, DIM)


@pytest.mark.parametrize(("scale", "margin"), [(0.0, 0.2), (30.0, -0.1), (30.0, 2.0)])
def test_impossible_scale_or_margin_is_refused(scale: float, margin: float) -> None:
    with pytest.raises(FedspkError, match="margin"):
        AAMSoftmax(_classes(), scale, margin)

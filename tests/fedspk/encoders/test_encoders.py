"""Encoders: shapes, the paper's sizes, any length where pooled, weights by seed alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from fedspk.encoders import build_encoder, list_encoders
from fedspk.errors import FedspkError

POOLED = [name for name in list_encoders() if name != "vggm"]


@pytest.mark.parametrize("name", POOLED)
def test_pooled_encoder_takes_any_number_of_frames(name: str) -> None:
    encoder = build_encoder(name, bins=40).eval()
    for frames in (50, 131):
        embedding = encoder(torch.randn(2, frames, 40))
        assert embedding.shape == (2, encoder.embedding_dim)
        assert embedding.dtype == torch.float32


def test_embedding_sizes_are_the_papers() -> None:
    assert build_encoder("vggm-small").embedding_dim == 256
    assert build_encoder("resnet1d-34").embedding_dim == 512


def test_vggm_first_fully_connected_layer_has_110_million_weights() -> None:
    with torch.device("meta"):
        from fedspk.encoders.vggm import VGGM

        encoder = VGGM(bins=80, frames=350)
    assert encoder.fc6.weight.shape == (4096, 21 * 5 * 256)
    assert encoder.embedding_dim == 1024


def test_narrow_vggm_works_on_the_size_it_was_built_for_only() -> None:
    encoder = build_encoder("vggm", frames=96, bins=40, width=0.1).eval()
    assert encoder(torch.randn(2, 96, 40)).shape == (2, 1024)
    with pytest.raises(FedspkError, match="96 x 40"):
        encoder(torch.randn(2, 97, 40))


@pytest.mark.parametrize("name", POOLED)
def test_an_utterance_does_not_influence_its_neighbours_in_the_batch(name: str) -> None:
    encoder = build_encoder(name).eval()
    features = torch.randn(3, 100, 80)
    torch.testing.assert_close(encoder(features)[1:2], encoder(features[1:2]), rtol=1e-3, atol=1e-4)


def test_weights_depend_on_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, again, other = (build_encoder("vggm-small", seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.rand(3), expected)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(
        not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True)
    )


def test_feature_normalisation_gives_embeddings_one_length() -> None:
    encoder = build_encoder("resnet1d-18", width=0.25, feature_scale=12.0)
    lengths = encoder(torch.randn(4, 60, 80)).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((4,), 12.0))


def test_width_scales_the_number_of_weights() -> None:
    sizes = [
        sum(p.numel() for p in build_encoder("vggm-pooled", width=width).parameters())
        for width in (0.125, 0.25, 0.5)
    ]
    assert all(a < b for a, b in pairwise(sizes))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("vgg", {}, "unknown"),
        ("vggm-small", {"depth": 3}, "depth"),
        ("vggm-small", {"width": 0.0}, "width"),
        ("vggm-small", {"bins": 8}, "at least"),
        ("vggm-small", {"width": "wide"}, "not supported"),
        ("vggm-small", {"embedding_dim": -3}, "-3"),
        ("vggm-small", {"embedding_dim": 2.5}, "float"),
        ("tdnn", {"channels": (8, 8, 8, "x")}, "encoder 'tdnn'"),
        ("resnet1d-18", {"blocks": (1,)}, "four stages"),
        ("resnet1d-18", {"blocks": (1, 1, 1, 10**9)}, "1 to 64 blocks"),
        ("resnet1d-18", {"blocks": "abcd"}, "not supported"),
    ],
)
def test_wrong_encoder_is_one_clear_error(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(FedspkError, match=message) as caught:
        build_encoder(name, **params)
    assert len(str(caught.value).splitlines()) == 1

"""SpeakerModel: which parameters are shared, in what order, and what scores the owner."""

from __future__ import annotations

import pytest
import torch

from fedspk.errors import FedspkError
from fedspk.model import HeadConfig, HeadKind, SpeakerModel, build_model

TINY = {"width": 0.125, "stem_channels": 8, "embedding_dim": 16}
CLASS_KINDS: list[HeadKind] = ["softmax", "am", "aam"]


def _model(head: HeadConfig, encoder: str = "vggm-small", seed: int = 1) -> SpeakerModel:
    return build_model(encoder, head, bins=40, frames=40, seed=seed, **TINY)


@pytest.mark.parametrize("kind", CLASS_KINDS)
def test_private_class_row_stays_home_when_the_head_is_local(kind: HeadKind) -> None:
    model = _model(HeadConfig(kind, public=3))
    assert model.local_parameters("local") == ["head.classes.device"]
    assert "head.classes.public" in model.shared_parameters("local")
    assert model.local_parameters("shared") == []


def test_binary_head_stays_home_when_the_head_is_local() -> None:
    model = _model(HeadConfig("binary"))
    assert model.local_parameters("local") == ["head.weight", "head.bias"]
    assert all(name.startswith("encoder.") for name in model.shared_parameters("local"))


def test_codewords_are_neither_shared_nor_local() -> None:
    model = _model(HeadConfig("aam", public=3, devices=4, owner=2, codeword_seed=9))
    assert model.local_parameters("local") == []
    assert "head.classes.codewords" not in model.shared_parameters("shared")
    assert "head.classes.codewords" in model.state_dict()


def test_shared_names_follow_the_state_dict() -> None:
    model = _model(HeadConfig("softmax", public=3))
    assert model.shared_parameters("shared") == list(model.state_dict())


def test_batchnorm_statistics_are_shared_only_when_asked_for() -> None:
    model = build_model("vggm-small", HeadConfig(), bins=40, seed=1, normalisation="batch", **TINY)
    without = model.shared_parameters("shared")
    with_statistics = model.shared_parameters("shared", batchnorm_statistics=True)
    added = set(with_statistics) - set(without)
    assert len(added) == 10
    assert all(name.endswith(("running_mean", "running_var")) for name in added)
    assert not any("running" in name for name in without)


def test_binary_label_is_whether_the_class_is_the_owners() -> None:
    model = _model(HeadConfig("binary", public=3))
    embedding = torch.randn(4, 16)
    loss = model.loss_of_embedding(embedding, torch.tensor([3, 0, 1, 3]))
    expected = model.head(embedding, torch.tensor([1, 0, 0, 1]))
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("kind", CLASS_KINDS)
@pytest.mark.parametrize("owner", [0, 1])
def test_owner_score_is_the_log_odds_of_the_owners_class(kind: HeadKind, owner: int) -> None:
    model = _model(HeadConfig(kind, public=3, devices=2, owner=owner, scale=5.0))
    embedding = torch.randn(4, 16)
    p = torch.softmax(model.head.logits(embedding), dim=1)[:, 3 + owner]
    expected = torch.log(p) - torch.log1p(-p)
    torch.testing.assert_close(
        model.owner_scores_of_embedding(embedding), expected, rtol=1e-3, atol=1e-4
    )


def test_owner_score_follows_the_owner_label() -> None:
    model = _model(HeadConfig("aam", public=2, devices=3, codeword_seed=1))
    words = model.get_buffer("head.classes.codewords")
    for device in range(3):
        model.owner_label = 2 + device
        assert int(model.owner_scores_of_embedding(words).argmax()) == device


def test_owner_score_without_other_classes_is_the_logit() -> None:
    model = _model(HeadConfig("softmax"))
    embedding = torch.randn(4, 16)
    torch.testing.assert_close(
        model.owner_scores_of_embedding(embedding), model.head.logits(embedding)[:, 0]
    )


def test_same_seed_gives_the_same_model_and_the_encoder_ignores_the_head() -> None:
    a, b = _model(HeadConfig("aam", public=3)), _model(HeadConfig("aam", public=3))
    assert all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())
    binary = _model(HeadConfig("binary")).encoder.state_dict()
    assert all(torch.equal(x, binary[name]) for name, x in a.encoder.state_dict().items())


def test_parameters_of_another_model_are_refused() -> None:
    model = _model(HeadConfig("softmax", public=3))
    with pytest.raises(FedspkError, match=r"head\.classes\.public.*\(5, 16\)"):
        model.load_parameters({"head.classes.public": torch.zeros(5, 16)})
    with pytest.raises(FedspkError, match="no such parameter"):
        model.load_parameters({"head.bias": torch.zeros(1)})


@pytest.mark.parametrize(
    "fields", [{"kind": "triplet"}, {"public": -1}, {"devices": 2, "owner": 2}]
)
def test_impossible_head_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(FedspkError, match="head"):
        HeadConfig(**fields)  # type: ignore[arg-type]

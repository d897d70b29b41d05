"""Thresholds and evaluation for a manifest, from trials."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from version_repository import make_model

from fedspk.model_card import (
    FALSE_ACCEPT_RATES,
    FEWEST_ERRORS,
    card_of_trials,
    model_card,
    thresholds,
)
from fedspk.release import draft_manifest
from fedspk.trials import Trial


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 40_000),
    levels=st.sampled_from([2, 7, 50, 10**9]),
)
def test_impostors_reach_a_threshold_at_most_at_its_rate(
    seed: int, count: int, levels: int
) -> None:
    nontarget = np.random.default_rng(seed).integers(0, levels, count) / levels
    found = thresholds(nontarget)
    cuts = [each.threshold for each in found]
    assert cuts == sorted(set(cuts), reverse=True)
    for each in found:
        assert np.mean(nontarget >= each.threshold) <= each.false_accept_rate
        assert np.sum(nontarget >= each.threshold) >= FEWEST_ERRORS


@pytest.mark.parametrize(("count", "rates"), [(299, 0), (300, 1), (600, 2), (3000, 3), (30000, 4)])
def test_a_rate_needs_thirty_errors(count: int, rates: int) -> None:
    nontarget = np.random.default_rng(0).normal(size=count)
    found = [each.false_accept_rate for each in thresholds(nontarget)]
    assert found == list(FALSE_ACCEPT_RATES[len(FALSE_ACCEPT_RATES) - rates :])


def test_no_more_impostors_could_be_accepted() -> None:
    nontarget = np.random.default_rng(1).normal(size=3000)
    for each in thresholds(nontarget):
        assert np.sum(nontarget >= each.threshold) == int(each.false_accept_rate * 3000)


def test_equal_scores_that_leave_no_threshold_leave_the_rate_out() -> None:
    nontarget = np.concatenate([np.ones(31), np.linspace(0, 0.5, 269)])
    assert thresholds(nontarget) == []


def test_a_card_makes_a_manifest(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    make_model(tmp_path / "model.safetensors")
    card = model_card(
        generator.normal(2, 1, 200),
        generator.normal(0, 1, 3000),
        corpus="corpus-1",
        devices=5,
        seed=1,
    )
    manifest = draft_manifest(
        card, tmp_path / "model.safetensors", 1, created="2026-01-01T00:00:00Z"
    )
    assert manifest.evaluation is not None
    low, high = manifest.evaluation.eer_interval
    assert 0 < low < manifest.evaluation.eer < high < 50
    assert [each.false_accept_rate for each in manifest.thresholds] == [0.01, 0.05, 0.1]


@pytest.mark.parametrize(("targets", "nontargets", "high"), [(2, 9, 100), (60, 900, 5)])
def test_no_errors_are_no_certainty(targets: int, nontargets: int, high: float) -> None:
    card = model_card(np.ones(targets), np.zeros(nontargets), corpus="c", devices=1, seed=0)
    assert card["evaluation"]["eer"] == 0
    assert card["evaluation"]["eer_interval"] == pytest.approx([0, high])
    assert card["thresholds"] == []


def test_a_fingerprint_is_of_sounds_and_not_of_their_names(tmp_path: Path) -> None:
    def corpus(first: str, second: str, sound: bytes) -> str:
        (tmp_path / first).write_bytes(b"one")
        (tmp_path / second).write_bytes(sound)
        trials = [Trial(first, first, True), Trial(first, second, False)]
        card = card_of_trials(trials, tmp_path, np.ones(1), np.zeros(1), seed=0)
        assert card["evaluation"]["devices"] == 1
        return str(card["evaluation"]["corpus"])

    assert corpus("a", "b", b"two") == corpus("c", "d", b"two")
    assert corpus("a", "b", b"two") != corpus("a", "b", b"three")

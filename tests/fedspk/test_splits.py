"""Training and test never share a session; folds cover everything once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedspk.corpora import Utterance, split_utterances
from fedspk.errors import FedspkError


def utterances(count: int, sessions: int = 0) -> list[Utterance]:
    return [
        Utterance(f"anna/{i:03d}", "anna", session=f"day{i % sessions}" if sessions else None)
        for i in range(count)
    ]


def test_fifth_of_the_utterances_is_the_test() -> None:
    train, test = split_utterances(utterances(20), seed=1)
    assert (len(train), len(test)) == (16, 4)
    assert sorted({u.id for u in train} | {u.id for u in test}) == [u.id for u in utterances(20)]


def test_whole_sessions_are_the_test() -> None:
    train, test = split_utterances(utterances(20, sessions=4), seed=1)
    assert (len(train), len(test)) == (15, 5)
    assert not {u.session for u in train} & {u.session for u in test}


def test_one_session_is_split_by_utterance() -> None:
    train, test = split_utterances(utterances(10, sessions=1), seed=1)
    assert (len(train), len(test)) == (8, 2)


def test_split_depends_on_the_seed_alone() -> None:
    first = split_utterances(utterances(20), seed=1)
    backwards = split_utterances(utterances(20)[::-1], seed=1)
    assert {u.id for u in first[1]} == {u.id for u in backwards[1]}
    assert first != split_utterances(utterances(20), seed=2)


@given(
    count=st.integers(2, 40),
    sessions=st.integers(0, 6),
    folds=st.integers(2, 6),
    seed=st.integers(0, 9),
)
def test_folds_are_disjoint_and_cover_everything(
    count: int, sessions: int, folds: int, seed: int
) -> None:
    everything = utterances(max(count, folds), sessions)
    tested: list[str] = []
    for fold in range(folds):
        train, test = split_utterances(everything, seed=seed, fold=fold, folds=folds)
        assert train
        assert test
        assert not {u.id for u in train} & {u.id for u in test}
        tested += [u.id for u in test]
    assert sorted(tested) == [u.id for u in everything]


@given(count=st.integers(2, 40), sessions=st.integers(0, 6), fraction=st.floats(0.0, 1.0))
def test_neither_part_is_empty(count: int, sessions: int, fraction: float) -> None:
    train, test = split_utterances(utterances(count, sessions), test_fraction=fraction, seed=0)
    assert train
    assert test


@pytest.mark.parametrize(
    ("count", "fold", "folds", "message"),
    [
        (1, 0, 1, "at least 2 are needed"),
        (0, 0, 1, "at least 2 are needed"),
        (4, 0, 5, "at least 5 are needed"),
        (9, 3, 3, "must be 0 to 2"),
    ],
)
def test_impossible_splits_are_one_clear_error(
    count: int, fold: int, folds: int, message: str
) -> None:
    with pytest.raises(FedspkError, match=message):
        split_utterances(utterances(count), seed=0, fold=fold, folds=folds)

"""Owners, public speakers and outsiders never mix, and neither do training and test speech."""

from __future__ import annotations

from itertools import combinations

import pytest

from fedspk.corpora import Corpus, Utterance
from fedspk.errors import FedspkError
from simulations.federated.cast import Cast, all_public, assign, count_folds


def corpus(speakers: int, utterances: int, sessions: int = 0) -> Corpus:
    return Corpus(
        "made",
        tuple(
            Utterance(f"s{s:02d}/{u}", f"s{s:02d}", session=str(u % sessions) if sessions else None)
            for s in range(speakers)
            for u in range(utterances)
        ),
    )


def roles(cast: Cast) -> list[set[str]]:
    owners = {owner.speaker for owner in cast.owners}
    return [owners, set(cast.public_train), set(cast.outsiders)]


def test_every_speaker_has_one_part() -> None:
    made = corpus(48, 20)
    cast = assign(made, 25, 100, seed=3, fold=0, folds=1)
    for first, second in combinations(roles(cast), 2):
        assert not first & second
    assert len(cast.owners) == 25
    assert set.union(*roles(cast)) == set(made.speakers)
    assert set(cast.public_validation) == set(cast.public_train)


def test_training_validation_and_test_are_disjoint_and_complete() -> None:
    made = corpus(12, 20)
    for owner in assign(made, 6, 100, seed=0, fold=0, folds=1).owners:
        parts = [{u.id for u in part} for part in (owner.train, owner.validation, owner.test)]
        assert [len(part) for part in parts] == [13, 3, 4]
        assert set.union(*parts) == {u.id for u in made.speakers[owner.speaker]}


def test_test_sessions_never_train() -> None:
    for owner in assign(corpus(12, 20, sessions=4), 6, 100, seed=0, fold=0, folds=1).owners:
        trained = {u.session for u in (*owner.train, *owner.validation)}
        assert not trained & {u.session for u in owner.test}


def test_the_seed_decides_the_cast() -> None:
    made = corpus(48, 20)
    first = assign(made, 25, 100, seed=1, fold=0, folds=1)
    assert assign(made, 25, 100, seed=1, fold=0, folds=1) == first
    assert assign(made, 25, 100, seed=2, fold=0, folds=1) != first


def test_folds_share_the_owners_and_together_test_everything() -> None:
    made = corpus(12, 9)
    folds = [assign(made, 6, 100, seed=0, fold=k, folds=3) for k in range(3)]
    assert len({tuple(o.speaker for o in fold.owners) for fold in folds}) == 1
    for index, owner in enumerate(folds[0].owners):
        tested = [u.id for fold in folds for u in fold.owners[index].test]
        assert sorted(tested) == sorted(u.id for u in made.speakers[owner.speaker])


def test_an_owner_with_too_little_speech_is_named() -> None:
    with pytest.raises(FedspkError, match=r"s0.*cannot be split"):
        assign(corpus(8, 5), 4, 100, seed=0, fold=0, folds=6)


def test_few_utterances_an_owner_mean_cross_validation() -> None:
    assert count_folds(corpus(8, 20), 4, seed=0) == 1
    assert count_folds(corpus(8, 6), 4, seed=0) == 5


def test_a_public_speaker_with_one_utterance_trains_and_does_not_validate() -> None:
    cast = all_public(corpus(5, 1), seed=0)
    assert len(cast.public_train) == 5
    assert not cast.public_validation

"""Owners, public speakers and outsiders never mix, and neither do training and test speech."""

from __future__ import annotations

from itertools import combinations

import pytest

from fedspk.corpora import Corpus, Utterance
from fedspk.errors import FedspkError
from simulations.federated.cast import Cast, all_public, assign, count_folds
from simulations.federated.config import ExperimentConfig


def corpus(speakers: int, utterances: int, sessions: int = 0) -> Corpus:
    return Corpus(
        "made",
        tuple(
            Utterance(f"s{s:02d}/{u}", f"s{s:02d}", session=str(u % sessions) if sessions else None)
            for s in range(speakers)
            for u in range(utterances)
        ),
    )


def cast_of(corpus: Corpus, devices: int, seed: int, fold: int = 0, folds: int = 1) -> Cast:
    config = ExperimentConfig(devices=devices, seed=seed, folds=folds)
    return assign(corpus, config, fold)


def roles(cast: Cast) -> list[set[str]]:
    owners = {owner.speaker for owner in cast.owners}
    return [owners, set(cast.public_train), set(cast.outsiders)]


def test_every_speaker_has_one_part() -> None:
    made = corpus(48, 20)
    cast = cast_of(made, 25, seed=3, fold=0, folds=1)
    for first, second in combinations(roles(cast), 2):
        assert not first & second
    assert len(cast.owners) == 25
    assert set.union(*roles(cast)) == set(made.speakers)
    assert set(cast.public_validation) == set(cast.public_train)


def test_training_validation_and_test_are_disjoint_and_complete() -> None:
    made = corpus(12, 20)
    for owner in cast_of(made, 6, seed=0, fold=0, folds=1).owners:
        parts = [{u.id for u in part} for part in (owner.train, owner.validation, owner.test)]
        assert [len(part) for part in parts] == [13, 3, 4]
        assert set.union(*parts) == {u.id for u in made.speakers[owner.speaker]}


def test_test_sessions_never_train() -> None:
    for owner in cast_of(corpus(12, 20, sessions=4), 6, seed=0, fold=0, folds=1).owners:
        sessions = [
            {u.session for u in part} for part in (owner.train, owner.validation, owner.test)
        ]
        assert all(not first & second for first, second in combinations(sessions, 2))
        assert owner.is_tested_on_new_sessions


def test_the_seed_decides_the_cast() -> None:
    made = corpus(48, 20)
    first = cast_of(made, 25, seed=1, fold=0, folds=1)
    assert cast_of(made, 25, seed=1, fold=0, folds=1) == first
    assert cast_of(made, 25, seed=2, fold=0, folds=1) != first


def test_folds_share_the_owners_and_together_test_everything() -> None:
    made = corpus(12, 9)
    folds = [cast_of(made, 6, seed=0, fold=k, folds=3) for k in range(3)]
    assert len({tuple(o.speaker for o in fold.owners) for fold in folds}) == 1
    for index, owner in enumerate(folds[0].owners):
        tested = [u.id for fold in folds for u in fold.owners[index].test]
        assert sorted(tested) == sorted(u.id for u in made.speakers[owner.speaker])


def test_an_owner_with_too_little_speech_is_named() -> None:
    with pytest.raises(FedspkError, match=r"s0.*cannot be split"):
        cast_of(corpus(8, 5), 4, seed=0, fold=0, folds=6)


def test_few_utterances_an_owner_mean_cross_validation() -> None:
    assert count_folds(corpus(8, 20), 4, seed=0) == 1
    assert count_folds(corpus(8, 6), 4, seed=0) == 5
    assert count_folds(corpus(8, 6, sessions=3), 4, seed=0) == 3


def test_a_cross_validation_by_sessions_never_tests_a_session_that_it_trained_on() -> None:
    made = corpus(8, 9, sessions=3)
    folds = count_folds(made, 4, seed=0)
    for fold in range(folds):
        for owner in cast_of(made, 4, seed=0, fold=fold, folds=folds).owners:
            assert owner.is_tested_on_new_sessions


def test_owners_with_several_sessions_are_chosen_first() -> None:
    one, many = corpus(8, 10, sessions=1), corpus(12, 10, sessions=2)
    mixed = Corpus(
        "mixed", one.utterances + many.only(f"s{i:02d}" for i in (8, 9, 10, 11)).utterances
    )
    owners = {owner.speaker for owner in cast_of(mixed, 4, seed=0).owners}
    assert owners == {"s08", "s09", "s10", "s11"}


def test_a_public_speaker_with_one_utterance_trains_and_does_not_validate() -> None:
    cast = all_public(corpus(5, 1), seed=0)
    assert len(cast.public_train) == 5
    assert not cast.public_validation

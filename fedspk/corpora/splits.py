"""Training and test utterances of one speaker: by session where sessions are known."""

from __future__ import annotations

from collections.abc import Sequence

from fedspk.corpora.base import Utterance
from fedspk.errors import FedspkError
from fedspk.seeds import numpy_generator


def split_utterances(
    utterances: Sequence[Utterance],
    *,
    test_fraction: float = 0.2,
    seed: int,
    fold: int = 0,
    folds: int = 1,
) -> tuple[tuple[Utterance, ...], tuple[Utterance, ...]]:
    """Divide one speaker's utterances into (training, test); both keep their order.

    Where at least two sessions are known, whole sessions go to the test until it holds about
    `test_fraction` of the utterances, so that no test session was trained on; otherwise single
    utterances do. With `folds` > 1 the test sets of folds 0 to `folds` - 1 are disjoint and
    together cover everything, and `test_fraction` plays no part.

    Raises:
        FedspkError: there are fewer than two utterances, or fewer sessions or utterances than
            folds, or `fold` is not below `folds`.
    """
    if not 0 <= fold < folds:
        raise FedspkError(f"fold is {fold}; with {folds} folds it must be 0 to {folds - 1}.")
    groups = _groups(utterances, at_least=max(2, folds))
    order = numpy_generator(seed, "split").permutation(len(groups))
    shuffled = [groups[i] for i in order]
    if folds > 1:
        test = _balanced(shuffled, folds)[fold]
    else:
        test = _about(shuffled, test_fraction * len(utterances))
    return (
        tuple(utterance for utterance in utterances if utterance.id not in test),
        tuple(utterance for utterance in utterances if utterance.id in test),
    )


def _groups(utterances: Sequence[Utterance], at_least: int) -> list[list[str]]:
    """Ids that must stay together, sorted: those of one session, or single utterances."""
    sessions: dict[str, list[str]] = {}
    for utterance in sorted(utterances, key=lambda each: each.id):
        if utterance.session is not None:
            sessions.setdefault(utterance.session, []).append(utterance.id)
    all_known = sum(map(len, sessions.values())) == len(utterances)
    if all_known and len(sessions) >= at_least:
        return [sessions[name] for name in sorted(sessions)]
    if len(utterances) < at_least:
        speaker = utterances[0].speaker if utterances else "a speaker"
        raise FedspkError(
            f"{speaker}: {len(utterances)} utterances cannot be split; at least {at_least} are "
            "needed."
        )
    return [[name] for name in sorted(utterance.id for utterance in utterances)]


def _about(groups: list[list[str]], wanted: float) -> set[str]:
    """Take groups until their sum is nearest to `wanted`; at least one, never all."""
    test = set(groups[0])
    for group in groups[1:-1]:
        if abs(len(test) + len(group) - wanted) >= abs(len(test) - wanted):
            break
        test.update(group)
    return test


def _balanced(groups: list[list[str]], folds: int) -> list[set[str]]:
    """Deal the groups, largest first, each to the fold that holds the fewest utterances."""
    tests: list[set[str]] = [set() for _ in range(folds)]
    for group in sorted(groups, key=len, reverse=True):
        min(tests, key=len).update(group)
    return tests

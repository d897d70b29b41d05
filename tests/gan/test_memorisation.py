"""What training speech a generator repeats is found out, and what it does not is not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from gan.memorisation import memorisation, replay_distance

FloatArray = npt.NDArray[np.float32]
_DIM, _SPEEDS, _TAKES = 12, 3, 4


def people(count: int, seed: int, spread: float = 0.4) -> FloatArray:
    """Embeddings (count, speeds, takes, D) of people drawn at random, all versions near them."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(count, 1, 1, _DIM))
    speeds = 0.5 * generator.normal(size=(count, _SPEEDS, 1, _DIM))
    noise = spread * generator.normal(size=(count, _SPEEDS, _TAKES, _DIM))
    return (centres + speeds + noise).astype(np.float32)


TRAIN, HELD_OUT = people(40, seed=1), people(20, seed=2)


def strangers(count: int = 60) -> FloatArray:
    """Voices (count, takes, D) of people at one speed each."""
    return people(count, seed=3)[:, 0]


def test_new_speakers_are_no_memories() -> None:
    found = memorisation(TRAIN, HELD_OUT, strangers(), seed=0)
    assert found.difference_interval[0] < 0 < found.difference_interval[1]
    assert found.nearer_interval[0] < 0.05 < found.nearer_interval[1]
    assert found.replaying == 0
    assert not found.is_found


def test_few_generators_of_strangers_are_suspected() -> None:
    suspected = 0
    for draw in range(40):
        everybody = people(100, seed=100 + draw)
        made = everybody[60:, draw % _SPEEDS]
        suspected += memorisation(everybody[:40], everybody[40:60], made, draw).is_found
    assert suspected <= 6  # of 40; three questions at 2.5 % each: 3 expected at most


@pytest.mark.parametrize("speed", range(_SPEEDS))
def test_a_replay_of_two_speakers_is_found_at_every_speed(speed: int) -> None:
    found = memorisation(TRAIN, HELD_OUT, np.repeat(TRAIN[:2, speed], 30, axis=0), seed=0)
    assert found.is_found
    assert found.nearer == 1.0
    assert found.nearer_interval == (pytest.approx(0.025 ** (1 / 60)), 1.0)
    assert found.replaying == 60


def test_one_voice_that_replays_is_found_among_sixty_that_do_not() -> None:
    made = strangers()
    made[7] = TRAIN[11, 2]
    found = memorisation(TRAIN, HELD_OUT, made, seed=0)
    assert (found.replaying, found.voices) == (1, 60)
    assert found.nearer_interval[0] < 0.05
    assert found.is_found


def test_voices_near_training_speech_are_found_without_one_verbatim_patch() -> None:
    train, held_out = people(40, 1, spread=1.0), people(20, 2, spread=1.0)
    made = people(60, 3, spread=1.0)[:, 0]
    noise = 0.8 * np.random.default_rng(4).normal(size=(30, _TAKES, _DIM))
    made[:30] = train[:30, 1] + noise
    found = memorisation(train, held_out, made, seed=0)
    assert found.difference_interval[0] < 0
    assert found.replaying == 0
    assert found.nearer_interval[0] > 0.05
    assert found.is_found


def test_voices_between_all_speakers_are_found_though_they_are_no_copies() -> None:
    """What lies in the middle of a crowd opens everybody's door."""
    middle = np.full(_DIM, 1 / np.sqrt(_DIM), dtype=np.float32)
    train, held_out = people(40, 1, spread=1.0) + middle, people(20, 2, spread=1.0) + middle
    noise = 0.8 * np.random.default_rng(0).normal(size=(60, _TAKES, _DIM))
    found = memorisation(train, held_out, (2 * middle + noise).astype(np.float32), seed=0)
    assert found.nearer_interval[0] < 0.05
    assert found.replaying == 0
    assert found.difference_interval[0] > 0
    assert found.is_found


def test_few_held_out_people_make_the_cut_unsure() -> None:
    few = HELD_OUT[:4]
    low, high = memorisation(TRAIN, few, strangers(), seed=0).nearer_interval
    as_if_many = memorisation(TRAIN, np.repeat(few, 10, axis=0), strangers(), seed=0)
    narrow = as_if_many.nearer_interval[1] - as_if_many.nearer_interval[0]
    assert high - low > 1.3 * narrow


@pytest.mark.parametrize("known", [8, 50, 250])
def test_a_stranger_is_seldom_taken_for_a_replay(known: int) -> None:
    generator = np.random.default_rng(0)
    wrong = [
        generator.weibull(3, 200).min() < replay_distance(generator.weibull(3, known), 200)
        for _ in range(200)
    ]
    assert np.mean(wrong) <= 0.05


def test_equal_strangers_suspect_nobody_who_is_equal_to_them() -> None:
    assert replay_distance(np.full(8, 1e-6), 200) <= 1e-6

"""The listener hears one speaker in two takes, and tells the generator when it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fedspk.feature_table import FeatureTable
from fedspk.parallel import one_torch_thread
from fedspk.seeds import numpy_generator
from gan.listener import Likeness, Listener, likeness, train_listener
from gan.patches import SpeakerPatches

_SPEAKERS, _TAKES, _FRAMES, _BINS = 8, 6, 40, 8


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> SpeakerPatches:
    """Every speaker has a rhythm of its own."""
    generator = np.random.default_rng(0)
    rates = np.linspace(0.05, 0.45, _SPEAKERS)[:, None, None, None]
    phases = generator.uniform(size=(_SPEAKERS, _TAKES, 1, 1))
    waves = np.sin(2 * np.pi * (rates * np.arange(_FRAMES)[:, None] + phases))
    noise = generator.normal(size=(_SPEAKERS, _TAKES, _FRAMES, _BINS))
    pack = tmp_path_factory.mktemp("patches") / "pack.npy"
    np.save(pack, (2 * waves + 0.5 * noise).reshape(-1, _FRAMES, _BINS).astype(np.float16))
    rows = np.arange(_SPEAKERS * _TAKES)
    table = FeatureTable([Path(pack)], np.zeros_like(rows), rows)
    return SpeakerPatches(table, tuple(map(tuple, rows.reshape(_SPEAKERS, _TAKES).tolist())))


@pytest.fixture(scope="module")
def listener(patches: SpeakerPatches) -> Listener:
    with one_torch_thread():
        return train_listener(patches, _BINS, crop_frames=32, steps=20, seed=1)


def pairs(patches: SpeakerPatches) -> Tensor:
    drawn = patches.pairs(_SPEAKERS, numpy_generator(5))
    return torch.stack(drawn)


def test_two_takes_of_one_speaker_sound_more_alike_than_those_of_two(
    patches: SpeakerPatches, listener: Listener
) -> None:
    heard = likeness(listener, pairs(patches))
    assert heard.same > heard.other + 0.3


def test_a_generator_whose_speaker_code_means_nothing_is_far_from_real(
    patches: SpeakerPatches, listener: Listener
) -> None:
    real = likeness(listener, pairs(patches))
    first, second = pairs(patches)
    shuffled = likeness(listener, torch.stack([first, second.roll(1, 0)]))
    assert real.distance(real) == 0
    assert shuffled.distance(real) > 0.3


def test_the_listener_is_frozen_and_reproducible(
    patches: SpeakerPatches, listener: Listener
) -> None:
    with one_torch_thread():
        again = train_listener(patches, _BINS, crop_frames=32, steps=20, seed=1)
    assert not any(weight.requires_grad for weight in listener.parameters())
    for name, value in listener.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_what_was_heard_is_averaged_field_by_field() -> None:
    low = Likeness(torch.tensor(0.0), torch.tensor(0.2), torch.zeros(2))
    high = Likeness(torch.tensor(1.0), torch.tensor(0.4), torch.ones(2))
    mean = low.lerp(high, 0.25)
    assert mean.same == 0.25
    assert torch.allclose(mean.other, torch.tensor(0.25))
    assert torch.equal(mean.mean, torch.full((2,), 0.25))

"""How the classes of a run's invented speakers begin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_federation import BINS, FRAMES, tiny_config
from tiny_generator import make_generator
from torch import Tensor

from fedspk.errors import FedspkError
from fedspk.features import FrontEndConfig
from fedspk.rounds import RunConfig
from fedspk.run_model import device_model, federated_model, initial_vector, shared_names
from fedspk.weights import FloatVector
from gan.invented import VALIDATION_TAKE, file_hash, run_voices, with_invented_classes
from gan.sampling import InventedVoices


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gan") / "generator.safetensors"
    return make_generator(path, front_end=FrontEndConfig(frames=FRAMES, bins=BINS))


@pytest.fixture(scope="module")
def config(generator: Path) -> RunConfig:
    return tiny_config(impostors="gan", generator=file_hash(generator), public=5)


def share_known(vector: FloatVector, config: RunConfig, generator: Path) -> float:
    """Return the share of invented utterances whose own class scores highest of the public ones."""
    model, speakers = federated_model(vector, config), [k for k in range(5) for _ in range(4)]
    patches = run_voices(generator, config).patches(speakers, list(range(4)) * 5)
    with torch.inference_mode():
        found = model.head.logits(model(patches))[:, : config.public].argmax(1)
    return float((found == torch.tensor(speakers)).float().mean())


def test_classes_know_their_speakers_and_the_encoder_stays(
    generator: Path, config: RunConfig
) -> None:
    before = initial_vector(config)
    after = with_invented_classes(before, config, generator)
    assert share_known(after, config, generator) >= share_known(before, config, generator) + 0.2
    like, start, moved = device_model(config).state_dict(), 0, set()
    for name in shared_names(device_model(config), config):
        stop = start + like[name].numel()
        if not np.array_equal(before[start:stop], after[start:stop]):
            moved.add(name)
        start = stop
    assert moved == {"head.classes.public"}
    assert np.array_equal(after, with_invented_classes(before, config, generator))


def test_classes_never_hear_the_take_that_validates(
    generator: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: set[int] = set()
    patches = InventedVoices.patches

    def listening(self: InventedVoices, speakers: Sequence[int], takes: Sequence[int]) -> Tensor:
        drawn.update(takes)
        return patches(self, speakers, takes)

    monkeypatch.setattr(InventedVoices, "patches", listening)
    with_invented_classes(initial_vector(config), config, generator)
    assert drawn
    assert VALIDATION_TAKE not in drawn


def test_codewords_of_devices_are_no_hindrance(generator: Path, config: RunConfig) -> None:
    fixed = config.changed(codeword_seed=3, devices=4)
    before = initial_vector(fixed)
    after = with_invented_classes(before, fixed, generator)
    assert share_known(after, fixed, generator) >= share_known(before, fixed, generator) + 0.2


def test_a_binary_head_has_no_classes_but_the_generator_must_be_the_run_s(
    generator: Path, config: RunConfig
) -> None:
    binary = config.changed(head_kind="binary")
    before = initial_vector(binary)
    assert with_invented_classes(before, binary, generator) is before
    with pytest.raises(FedspkError, match="is not the generator of this run"):
        with_invented_classes(before, binary.changed(generator=64 * "0"), generator)

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_federation import BINS, FRAMES, PUBLIC, tiny_config, tiny_fleet
from tiny_generator import make_generator

from clients.batches import DeviceBatches
from clients.dataset import DeviceDataset
from clients.impostors import SpeechImpostors, impostor_source
from fedspk.errors import FedspkError
from fedspk.features import FrontEndConfig
from gan.invented import file_hash

_OWNER = 7


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    (path,) = tiny_fleet(tmp_path_factory.mktemp("fleet"), 1)
    return DeviceDataset.open(path)


def _batches(dataset, kind="speech", **changes):
    options = {"owner_fraction": 0.5, **changes}
    source = impostor_source(tiny_config(impostors=kind), dataset)
    return DeviceBatches(dataset, _OWNER, source, **options)


def test_a_description_comes_back_as_it_was_saved(dataset, tmp_path):
    moved = replace(dataset, folder=tmp_path / "device-0009")
    moved.save(tmp_path / "device-0009.json")
    assert DeviceDataset.open(tmp_path / "device-0009.json") == moved


def test_a_batch_holds_the_owner_s_share_and_impostors_with_their_classes(dataset):
    features, labels = next(_batches(dataset).batches(1, 8))
    assert features.shape == (8, FRAMES, BINS)
    assert features.dtype == torch.float32
    assert labels[:4].tolist() == [_OWNER] * 4
    assert set(labels[4:].tolist()) <= set(range(PUBLIC))


def test_the_same_seed_draws_the_same_batches(dataset):
    source = _batches(dataset, crop_frames=10)
    one, two, other = (source.batches(seed, 6) for seed in (1, 1, 2))
    for _ in range(3):
        features, labels = next(one)
        again, labels_again = next(two)
        assert torch.equal(features, again)
        assert torch.equal(labels, labels_again)
    assert not torch.equal(next(other)[0], features)


def test_each_owner_utterance_comes_once_before_any_comes_again(dataset):
    batches = _batches(dataset, "none").batches(3, 4)
    of_row = {row: n for n, variants in enumerate(dataset.owner_train) for row in variants}
    table = dataset.table
    known = {table.gather([row])[0].numpy().tobytes(): n for row, n in of_row.items()}
    for _ in range(5):
        features, labels = next(batches)
        assert labels.tolist() == [_OWNER] * 4
        assert sorted(known[clip.numpy().tobytes()] for clip in features) == [0, 1, 2, 3]


def test_crops_are_whole_runs_of_frames(dataset):
    features, _ = next(_batches(dataset, crop_frames=5).batches(1, 8))
    assert features.shape == (8, 5, BINS)
    rows = [row for variants in dataset.owner_train for row in variants]
    clips = dataset.table.gather(rows)
    windows = clips.unfold(1, 5, 1).transpose(2, 3)  # (clips, starts, 5, bins)
    for crop in features[:4]:
        assert (windows == crop).all(dim=(2, 3)).any()


def test_a_crop_longer_than_a_clip_is_refused(dataset):
    with pytest.raises(FedspkError, match="choose fewer"):
        next(_batches(dataset, crop_frames=FRAMES + 1).batches(1, 4))


def test_every_public_speaker_is_drawn_equally_often(dataset):
    uneven = replace(
        dataset,
        impostors=(*dataset.impostors, *dataset.impostors[:3] * 5),
        impostor_labels=(*dataset.impostor_labels, *dataset.impostor_labels[:3] * 5),
    )
    _, labels = SpeechImpostors(uneven, PUBLIC).draw(3000, np.random.default_rng(0))
    assert np.bincount(labels.numpy(), minlength=PUBLIC).min() > 900


@pytest.fixture(scope="module")
def inventive(dataset, tmp_path_factory):
    """The device with a generator, and a run that trains against it."""
    path = tmp_path_factory.mktemp("gan") / "generator.safetensors"
    make_generator(path, front_end=FrontEndConfig(frames=FRAMES, bins=BINS))
    config = tiny_config(impostors="gan", generator=file_hash(path))
    return replace(dataset, generator=path), config


def test_invented_impostors_are_drawn_anew_and_keep_their_classes(inventive):
    source = impostor_source(inventive[1], inventive[0])
    generator = np.random.default_rng(0)
    features, labels = source.draw(6, generator)
    more, _ = source.draw(6, generator)
    assert features.shape == (6, FRAMES, BINS)
    assert set(labels.tolist()) <= set(range(PUBLIC))
    assert len({patch.numpy().tobytes() for patch in torch.cat([features, more])}) == 12


def test_all_devices_of_a_run_invent_the_same_speakers(inventive):
    dataset, config = inventive
    here = impostor_source(config, dataset).draw(4, np.random.default_rng(1))
    there = impostor_source(config, replace(dataset, index=3)).draw(4, np.random.default_rng(1))
    assert torch.equal(here[0], there[0])
    elsewhere = impostor_source(config.changed(seed=6), dataset).draw(4, np.random.default_rng(1))
    assert not torch.equal(here[0], elsewhere[0])


def test_a_device_validates_on_one_unheard_utterance_of_every_invented_speaker(inventive):
    source = impostor_source(inventive[1], inventive[0])
    (features, labels), *rest = source.validation()
    assert not rest
    assert labels.tolist() == list(range(PUBLIC))
    again, _ = next(source.validation())
    assert torch.equal(features, again)
    assert source.held_back == PUBLIC


def test_a_device_without_a_generator_or_with_another_one_says_so(inventive, tmp_path):
    dataset, config = inventive
    with pytest.raises(FedspkError, match="has no impostor generator"):
        impostor_source(config, replace(dataset, generator=None))
    other = make_generator(tmp_path / "other.safetensors", seed=2)
    with pytest.raises(FedspkError, match="is not the generator of this run"):
        impostor_source(config, replace(dataset, generator=other))


@pytest.mark.parametrize(
    "change",
    [
        {"frames": 2 * FRAMES},
        {"bins": 2 * BINS},
        {"kind": "fbank"},
        {"window_s": 0.04},
        {"hop_s": 0.02},
        {"normalise": "none"},
    ],
    ids=str,
)
def test_a_device_refuses_a_generator_for_another_front_end_whatever_differs(
    inventive, tmp_path, change
):
    dataset, config = inventive
    hears = replace(FrontEndConfig(frames=FRAMES, bins=BINS), **change)
    other = make_generator(tmp_path / "other.safetensors", front_end=hears)
    there = replace(dataset, generator=other)
    named = config.changed(generator=file_hash(other))
    with pytest.raises(FedspkError, match="use a generator trained with the encoder's front end"):
        impostor_source(named, there)
    others = {name: value for name, value in change.items() if name not in ("frames", "bins")}
    sizes = {"frames": hears.frames, "bins": hears.bins}
    source = impostor_source(named.changed(**sizes, front_end=others), there)
    features, _ = source.draw(1, np.random.default_rng(0))
    assert features.shape == (1, hears.frames, hears.bins)


def test_a_description_keeps_the_generator(inventive, tmp_path):
    moved = replace(inventive[0], folder=tmp_path / "device-0001")
    moved.save(tmp_path / "device-0001.json")
    assert DeviceDataset.open(tmp_path / "device-0001.json") == moved


def test_a_device_without_impostors_says_so(dataset):
    lonely = replace(dataset, impostors=(), impostor_labels=())
    with pytest.raises(FedspkError, match="has no impostors' speech"):
        impostor_source(tiny_config(), lonely)
    assert impostor_source(tiny_config(impostors="none"), lonely) is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": 9}, "not a device description"),
        ({"owner_train": []}, "owner_train is empty"),
        ({"owner_train": [[]]}, "has no row"),
        ({"impostor_labels": [1]}, "differ in length"),
        ({"owner_train": 3}, "list of lists"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_broken_description_is_one_clear_error(dataset, tmp_path, change, sentence):
    path = tmp_path / "device.json"
    dataset.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FedspkError, match=sentence):
        DeviceDataset.open(path)


def test_a_missing_description_is_named(tmp_path):
    with pytest.raises(FedspkError, match=r"device-0001\.json: there is no such"):
        DeviceDataset.open(tmp_path / "device-0001.json")

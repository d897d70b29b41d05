"""A tiny fleet on disk for tests: made-up features, a few clips a device, a small network."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clients.dataset import DeviceDataset
from clients.enrolment import enrol_simulated_fleet
from fedspk.feature_table import FeatureTable
from fedspk.rounds import RunConfig
from fedspk.run_model import initial_vector
from fedspk.weights import WeightStore

FRAMES, BINS, PUBLIC = 24, 8, 3
_OWNER_CLIPS, _PUBLIC_CLIPS, _VARIANTS = 6, 4, 2


def tiny_config(**changes: object) -> RunConfig:
    """A run of two rounds that takes a fraction of a second."""
    defaults: dict[str, object] = {
        "encoder": "resnet1d-18",
        "encoder_params": {"width": 0.125, "embedding_dim": 8},
        "frames": FRAMES,
        "bins": BINS,
        "head_kind": "softmax",
        "public": PUBLIC,
        "batch_size": 4,
        "owner_fraction": 0.5,
        "local_steps": 2,
        "rounds": 2,
        "seed": 5,
    }
    return RunConfig().changed(**{**defaults, **changes})


def tiny_fleet(folder: Path, devices: int) -> list[Path]:
    """Write a feature table and so many device descriptions; return the descriptions' paths.

    Every speaker has a rhythm of its own, which no normalisation over time takes away.
    """
    generator = np.random.default_rng(11)
    speakers = PUBLIC + devices
    clips = max(_OWNER_CLIPS, _PUBLIC_CLIPS) * _VARIANTS
    rates = np.linspace(0.05, 0.45, speakers)[:, None, None, None]
    phases = generator.uniform(size=(speakers, clips, 1, 1))
    frames = np.arange(FRAMES)[:, None]
    noise = generator.normal(size=(speakers, clips, FRAMES, BINS))
    features = 2 * np.sin(2 * np.pi * (rates * frames + phases)) + 0.5 * noise
    folder.mkdir(parents=True, exist_ok=True)
    pack = folder / "pack.npy"
    np.save(pack, features.reshape(-1, FRAMES, BINS).astype(np.float16))
    rows = np.arange(speakers * clips)
    FeatureTable([pack], np.zeros_like(rows), rows).save(folder / "features.json")

    def utterances(speaker: int, start: int, stop: int) -> tuple[tuple[int, ...], ...]:
        first = speaker * clips
        return tuple(
            tuple(first + _VARIANTS * clip + variant for variant in range(_VARIANTS))
            for clip in range(start, stop)
        )

    paths = []
    for index in range(devices):
        public = range(PUBLIC)
        dataset = DeviceDataset(
            device=f"device-{index:04d}",
            index=index,
            speaker=f"speaker {index}",
            features=Path("features.json"),
            folder=folder / f"device-{index:04d}",
            owner_train=utterances(PUBLIC + index, 0, 4),
            owner_validation=utterances(PUBLIC + index, 4, 6),
            impostors=tuple(clip for s in public for clip in utterances(s, 0, 3)),
            impostor_labels=tuple(s for s in public for _ in range(3)),
            validation_impostors=tuple(clip for s in public for clip in utterances(s, 3, 4)),
            validation_impostor_labels=tuple(public),
        )
        paths.append(folder / f"device-{index:04d}.json")
        dataset.save(paths[-1])
    enrol_simulated_fleet(folder, [path.stem for path in paths])
    return paths


def tiny_nodes(paths: list[Path]) -> list[dict[str, str | int | bool]]:
    """Return the nodes' configurations: content with each other, and with updates in clear."""
    policy = {"minimum-cohort": 2, "plain-updates": True}
    return [{"device": str(path), **policy} for path in paths]


def tiny_store(folder: Path, config: RunConfig) -> tuple[WeightStore, str]:
    """Return a store with the run's initial model, and that model's hash."""
    store = WeightStore(folder)
    return store, store.put(initial_vector(config))

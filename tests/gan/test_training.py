"""The training loop on a tiny network: it learns, continues where it stopped, and warns."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_generator import TINY_FRONT_END, TINY_NETWORK

from fedspk.errors import FedspkError
from fedspk.feature_table import FeatureTable
from fedspk.features import normalise
from fedspk.files import read_json
from fedspk.parallel import one_torch_thread
from gan.generator_file import generator_origin, load_generator
from gan.moments import moment_distance, patch_moments, typical_distance, voice_summary
from gan.patches import PatchPlan, SpeakerPatches
from gan.training import GanTrainer, GanTraining, Progress
from gan.training_run import GENERATOR_FILE, Recipe, train_generator

_SPEAKERS, _PATCHES = 6, 4
TINY_TRAINING = GanTraining(
    steps=6, pairs=2, crop_frames=32, width=8, learning_rate=1e-3, listener_steps=3
)


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> SpeakerPatches:
    """Speakers who differ in which bands move together."""
    generator = np.random.default_rng(0)
    frames, bins = TINY_FRONT_END.frames, TINY_FRONT_END.bins
    mixing = generator.normal(size=(_SPEAKERS, 1, 2, bins))
    course = generator.normal(size=(_SPEAKERS, _PATCHES, frames // 4, 2)).repeat(4, axis=2)
    noise = 0.2 * generator.normal(size=(_SPEAKERS, _PATCHES, frames, bins))
    features = torch.from_numpy(course @ mixing + noise).flatten(0, 1)
    pack = tmp_path_factory.mktemp("patches") / "pack.npy"
    np.save(pack, normalise(features, "mean-variance").numpy().astype(np.float16))
    rows = np.arange(_SPEAKERS * _PATCHES)
    table = FeatureTable([pack], np.zeros_like(rows), rows)
    return SpeakerPatches(table, tuple(map(tuple, rows.reshape(_SPEAKERS, _PATCHES).tolist())))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


def trainer(patches: SpeakerPatches, **changes: object) -> GanTrainer:
    config = replace(TINY_TRAINING, **changes)
    return GanTrainer(patches, TINY_FRONT_END, TINY_NETWORK, config)


def weights(made: GanTrainer) -> list[bytes]:
    return [value.numpy().tobytes() for value in made.average.state_dict().values()]


def test_the_generator_comes_nearer_to_real_speech(patches: SpeakerPatches) -> None:
    made = trainer(patches, steps=150, pairs=4, identity=0.0)
    made.run(10)
    before = made.progress()
    made.run(120)
    made.progress()
    made.run(20)
    after = made.progress()
    assert after.step == 150
    assert after.moment_distance < 0.8 * before.moment_distance


def test_a_training_continues_from_its_checkpoint_bit_for_bit(
    patches: SpeakerPatches, tmp_path: Path
) -> None:
    whole = trainer(patches)
    whole.run(6)
    first = trainer(patches)
    first.run(3)
    first.save(tmp_path / "checkpoint.safetensors")
    second = trainer(patches)
    second.restore(tmp_path / "checkpoint.safetensors")
    second.run(99)
    assert second.step == 6
    assert weights(second) == weights(whole)
    assert weights(trainer(patches, seed=1)) != weights(trainer(patches))


def test_a_checkpoint_of_other_networks_is_refused(patches: SpeakerPatches, tmp_path: Path) -> None:
    made = trainer(patches, width=16)
    made.run(1)
    made.save(tmp_path / "checkpoint.safetensors")
    with pytest.raises(FedspkError, match="is not a checkpoint of this training"):
        trainer(patches).restore(tmp_path / "checkpoint.safetensors")


def test_training_that_diverges_says_so(patches: SpeakerPatches) -> None:
    made = trainer(patches, learning_rate=1e30)
    made.run(3)
    with pytest.raises(FedspkError, match="diverged by step 3"):
        made.progress()


def test_speakers_that_are_all_alike_are_a_collapse(patches: SpeakerPatches) -> None:
    made = trainer(patches)
    made.run(1)
    assert not Progress(1, 0.0, 0.0, 0.0, diversity=0.6, identity=1.0).has_collapsed
    for layer in made.average.layers:
        torch.nn.init.zeros_(layer.noise)
    torch.nn.init.zeros_(made.average.output.weight)
    made.average.output.bias.fill_(1.0)
    assert made.progress().has_collapsed


def test_moments_tell_voices_that_are_all_alike_from_real_ones(patches: SpeakerPatches) -> None:
    real = patches.table.gather(patches.rows)
    moments = patch_moments(real)
    mean, spread = moments.mean(dim=0), moments.std(dim=0)
    alike = moments[:1].expand_as(moments)
    assert moment_distance(moments, mean, spread) < 1e-6
    assert moment_distance(alike, mean, spread) > 0.1


def test_a_summary_puts_one_voice_nearer_to_itself_than_to_others(
    patches: SpeakerPatches,
) -> None:
    one = typical_distance(voice_summary(patches.table.gather(patches.speakers[0])))
    firsts = [rows[0] for rows in patches.speakers]
    assert one < typical_distance(voice_summary(patches.table.gather(firsts)))


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"pairs": 1}, {"learning_rate": 0.0}, {"precision": "float8"}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(FedspkError):
        replace(TINY_TRAINING, **wrong)


def test_a_window_longer_than_a_patch_is_refused(patches: SpeakerPatches) -> None:
    with pytest.raises(FedspkError, match="choose fewer"):
        trainer(patches, crop_frames=41)


CORPUS = "synthetic:speakers=5,utterances=2,sessions=1"


def recipe(**changes: object) -> Recipe:
    return Recipe(
        TINY_FRONT_END,
        TINY_NETWORK,
        PatchPlan(patches=3, speeds=(1.0, 1.1)),
        replace(TINY_TRAINING, **changes),
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def trained(out: Path, cache: Path, resume: bool = False, **changes: object) -> Path:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "step .* collapsing")
        made = recipe(**changes)
        return train_generator(CORPUS, out, made, every=2, resume=resume, cache_root=cache)


def test_a_corpus_becomes_a_generator_with_sheets_and_a_manifest(
    cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "gan"
    path = trained(out, cache)
    origin = generator_origin(path)
    assert path == out / GENERATOR_FILE
    assert load_generator(path).front_end == TINY_FRONT_END
    assert origin["speakers"] == 4
    assert origin["held_out_speakers"] == 1
    assert origin["training"]["seed"] == 0
    assert len(origin["heard"]) == 8
    assert read_json(out / "generator.manifest.json")["kind"] == "gan"
    assert [entry["step"] for entry in read_json(out / "history.json")] == [2, 4, 6]
    assert len(list((out / "sheets").glob("step-*.png"))) == 3


def test_an_interrupted_training_ends_as_if_it_had_not_been(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trained(tmp_path / "whole", cache)
    run = GanTrainer.run

    def interrupted(self: GanTrainer, steps: int, on_step: object = None) -> None:
        if self.step == 4:
            raise KeyboardInterrupt
        run(self, steps, on_step)

    out = tmp_path / "broken"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(GanTrainer, "run", interrupted)
        trained(out, cache)
    with pytest.raises(FedspkError, match="add --resume"):
        trained(out, cache)
    with pytest.raises(FedspkError, match="other settings"):
        trained(out, cache, resume=True, seed=1)
    assert trained(out, cache, resume=True).read_bytes() == path.read_bytes()


def test_a_folder_of_something_else_is_left_alone(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FedspkError, match="is not an empty folder"):
        trained(tmp_path, cache)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_collapsing_generator_is_warned_of(cache: Path, tmp_path: Path) -> None:
    with (
        pytest.MonkeyPatch.context() as patched,
        pytest.warns(UserWarning, match="the generator may be collapsing"),
    ):
        patched.setattr(Progress, "has_collapsed", True)
        train_generator(CORPUS, tmp_path / "gan", recipe(), every=2, cache_root=cache)


def test_too_few_speakers_are_refused(cache: Path, tmp_path: Path) -> None:
    few = "synthetic:speakers=3,utterances=2,sessions=1"
    with pytest.raises(FedspkError, match="needs 4 or more"):
        train_generator(few, tmp_path / "gan", recipe(), cache_root=cache)

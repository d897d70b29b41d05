"""The training loop on a tiny network: it learns, continues where it stopped, and warns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from other_device import OTHER_DEVICE, let_numbers_be_fetched
from tiny_generator import TINY_FRONT_END, TINY_NETWORK

from fedspk.cli import run
from fedspk.errors import FedspkError
from fedspk.feature_table import FeatureTable
from fedspk.features import normalise
from fedspk.files import read_json
from fedspk.parallel import one_torch_thread
from gan import training_run
from gan.diversity import Fault, Progress, spread
from gan.generator_file import generator_origin, load_generator
from gan.moments import moment_distance, patch_moments, voice_summary
from gan.patches import PatchPlan, SpeakerPatches
from gan.training import GanTrainer, GanTraining
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


def trainer(
    patches: SpeakerPatches,
    checkpoint: Path | None = None,
    device: str = "cpu",
    **changes: object,
) -> GanTrainer:
    config = replace(TINY_TRAINING, **changes)
    return GanTrainer(patches, TINY_FRONT_END, TINY_NETWORK, config, device, checkpoint)


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
    first.progress()
    first.save(tmp_path / "checkpoint.safetensors")
    second = trainer(patches, tmp_path / "checkpoint.safetensors")
    assert (second.step, second.history) == (3, first.history)
    second.run(99)
    assert second.step == 6
    assert weights(second) == weights(whole)
    assert weights(trainer(patches, seed=1)) != weights(trainer(patches))


def test_a_checkpoint_of_other_networks_is_refused(patches: SpeakerPatches, tmp_path: Path) -> None:
    made = trainer(patches, width=16)
    made.run(1)
    made.save(tmp_path / "checkpoint.safetensors")
    with pytest.raises(FedspkError, match="is not a checkpoint of this training"):
        trainer(patches, tmp_path / "checkpoint.safetensors")


def test_training_that_diverges_says_so(patches: SpeakerPatches) -> None:
    made = trainer(patches, learning_rate=1e30)
    made.run(3)
    with pytest.raises(FedspkError, match="diverged by step 3"):
        made.progress()


def test_a_resumed_training_does_not_train_its_listener_again(
    patches: SpeakerPatches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trainer(patches)
    first.run(1)
    first.save(tmp_path / "checkpoint.safetensors")
    monkeypatch.delattr("gan.training.train_listener")
    second = trainer(patches, tmp_path / "checkpoint.safetensors")
    for name, value in first.listener.state_dict().items():
        assert torch.equal(second.listener.state_dict()[name], value)
    assert not any(weight.requires_grad for weight in second.listener.parameters())


@pytest.mark.filterwarnings("ignore:for .*non-meta parameter")
def test_a_checkpoint_is_continued_on_another_device(
    patches: SpeakerPatches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    first = trainer(patches)
    first.run(1)
    first.save(path)
    let_numbers_be_fetched(monkeypatch)
    moved = trainer(patches, path, OTHER_DEVICE)
    moved.run(2)
    assert moved.step == 3
    assert moved.progress().step == 3
    moved.save(path)
    assert trainer(patches, path).step == 3


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
    summaries = voice_summary(patches.table.gather(patches.rows))
    found = spread(summaries.view(_SPEAKERS, _PATCHES, -1))
    assert found.voices > found.takes


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


@pytest.fixture
def blank_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing, which is most of the time of a tiny training."""
    monkeypatch.setattr(training_run, "sample_sheet", lambda *_: Figure(figsize=(1, 1)))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def trained(
    out: Path, cache: Path, *, resume: bool = False, device: str = "cpu", **changes: object
) -> Path:
    made = recipe(**changes)
    return train_generator(
        CORPUS, out, made, every=2, resume=resume, cache_root=cache, device=device
    )


def stopped_after(step: int, out: Path, cache: Path, **settings: object) -> None:
    """Train, and press Ctrl-C after this step."""
    train = GanTrainer.run

    def interrupted(self: GanTrainer, steps: int, on_step: object = None) -> None:
        if self.step == step:
            raise KeyboardInterrupt
        train(self, steps, on_step)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(GanTrainer, "run", interrupted)
        trained(out, cache, **settings)


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


@pytest.mark.usefixtures("blank_sheets")
def test_an_interrupted_training_ends_as_if_it_had_not_been(cache: Path, tmp_path: Path) -> None:
    path = trained(tmp_path / "whole", cache)
    out = tmp_path / "broken"
    stopped_after(4, out, cache)
    with pytest.raises(FedspkError, match="add --resume"):
        trained(out, cache)
    with pytest.raises(FedspkError, match="other settings"):
        trained(out, cache, resume=True, seed=1)
    assert trained(out, cache, resume=True).read_bytes() == path.read_bytes()
    checkpoints = [path.with_name("checkpoint.safetensors"), out / "checkpoint.safetensors"]
    assert len({file.read_bytes() for file in checkpoints}) == 1


def test_a_folder_of_something_else_is_left_alone(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FedspkError, match="is not an empty folder"):
        trained(tmp_path, cache)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.usefixtures("blank_sheets")
def test_a_fault_is_told_once_in_one_line_as_long_as_it_lasts(
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    faults = {2: {Fault.VOICES_ALIKE}, 4: set(Fault), 6: {Fault.VOICES_ALIKE}, 8: set(Fault)}
    monkeypatch.setattr(Progress, "faults", property(lambda self: faults[self.step]))
    trained(tmp_path / "gan", cache, steps=8)
    told = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert [line.split(":")[2] for line in told] == [" step 2", *2 * [" step 4"], *2 * [" step 8"]]
    assert all(line.startswith("fedspk: warning: step") for line in told)
    assert "made voices differ by" in told[0]
    assert all(str(tmp_path / "gan" / "sheets") in line for line in told)


@pytest.mark.usefixtures("blank_sheets")
def test_voices_are_looked_at_between_checkpoints(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "_LOOK_EVERY", 3)
    out = tmp_path / "gan"
    train_generator(CORPUS, out, recipe(steps=7), every=4, cache_root=cache)
    assert [entry["step"] for entry in read_json(out / "history.json")] == [3, 4, 6, 7]
    sheets = sorted(path.name for path in (out / "sheets").iterdir())
    assert sheets == ["step-000004.png", "step-000007.png"]


@pytest.mark.usefixtures("blank_sheets")
def test_a_history_that_somebody_broke_is_written_anew(cache: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "gan"
    trained(whole, cache)
    stopped_after(4, out, cache)
    (out / "history.json").write_text("{}")
    trained(out, cache, resume=True)
    assert read_json(out / "history.json") == read_json(whole / "history.json")


@pytest.mark.usefixtures("blank_sheets")
def test_a_generator_says_how_many_steps_made_it(cache: Path, tmp_path: Path) -> None:
    stopped_after(4, tmp_path / "six", cache)
    trained(tmp_path / "four", cache, steps=4)
    early, whole = (tmp_path / name / GENERATOR_FILE for name in ("six", "four"))
    assert generator_origin(early)["training"]["steps"] == 4
    assert read_json(early.with_suffix(".manifest.json"))["training"]["config"]["steps"] == 4
    assert early.read_bytes() == whole.read_bytes()


def test_training_and_its_sheets_work_on_another_device(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_numbers_be_fetched(monkeypatch)
    out = tmp_path / "gan"
    path = trained(out, cache, steps=2, device=OTHER_DEVICE)
    assert load_generator(path).front_end == TINY_FRONT_END
    assert len(list((out / "sheets").iterdir())) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_graphics_card_trains_and_continues(cache: Path, tmp_path: Path, precision: str) -> None:
    stopped_after(4, tmp_path, cache, device="cuda", precision=precision)
    path = trained(tmp_path, cache, resume=True, device="cuda", precision=precision)
    assert load_generator(path).front_end == TINY_FRONT_END
    assert [entry["step"] for entry in read_json(tmp_path / "history.json")] == [2, 4, 6]


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99", ""])
def test_a_device_that_computes_nothing_is_refused_before_anything_is_read(
    tmp_path: Path, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gan"
    command = ["gan", "train", "--corpus", str(tmp_path / "none"), "--out", str(out)]
    assert run([*command, "--device", device]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--device {device}: nothing can be computed there" in line
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedspkError, match="--device cuda: nothing can be computed there"):
        train_generator(CORPUS, tmp_path / "gan", recipe(), device="cuda")


def test_a_refused_training_leaves_no_folder(cache: Path, tmp_path: Path) -> None:
    few = "synthetic:speakers=3,utterances=2,sessions=1"
    out = tmp_path / "gan"
    with pytest.raises(FedspkError, match="needs 4 or more"):
        train_generator(few, out, recipe(), cache_root=cache)
    with pytest.raises(FedspkError, match="choose fewer"):
        trained(out, cache, crop_frames=41)
    with pytest.raises(FedspkError, match="diverged"):
        trained(out, cache, learning_rate=1e30)
    assert not out.exists()
    assert trained(out, cache, steps=2).exists()

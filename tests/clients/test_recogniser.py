"""Enrolment, verification and model updates on the device."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import toy_device
from toy_device import SAMPLES, THRESHOLDS, new_device, open_device, toy_model, voice

from clients.compiled import CompiledEngine
from clients.recogniser import Recogniser
from clients.versions import Threshold, Version
from fedspk.audio import trim_silence
from fedspk.errors import FedspkError

CUT = THRESHOLDS[1]
OLD, NEW = toy_model(1), toy_model(2)


pytestmark = pytest.mark.usefixtures("quick_passphrases")


def home_of(device: Recogniser) -> Path:
    return device._vault.home


def assert_tells_apart(device: Recogniser) -> None:
    for speaker, name in enumerate(["anna", "bert"]):
        assert device.verify(name, voice(speaker, 7), CUT).accepted
        assert not device.verify(name, voice(1 - speaker, 7), CUT).accepted
        assert not device.verify(name, voice(3, 7), CUT).accepted


def test_the_user_is_accepted_and_others_are_refused(device: Recogniser) -> None:
    assert_tells_apart(device)
    assert_tells_apart(open_device(home_of(device)))


def test_the_best_user_is_identified_and_strangers_are_nobody(device: Recogniser) -> None:
    decisions = device.identify(voice(1, 7), CUT)
    assert [each.user for each in decisions] == ["bert", "anna"]
    assert [each.accepted for each in decisions] == [True, False]
    assert not device.identify(voice(3, 7), CUT)[0].accepted


def test_nobody_is_enrolled_yet(tmp_path: Path) -> None:
    device = new_device(tmp_path / "home")
    with pytest.raises(FedspkError, match="nobody is enrolled"):
        device.identify(voice(0, 0), CUT)
    with pytest.raises(FedspkError, match="'anna' is not enrolled"):
        device.verify("anna", voice(0, 0), CUT)
    with pytest.raises(FedspkError, match="at least one recording"):
        device.enrol("anna", [])


def test_a_score_at_the_threshold_is_accepted(device: Recogniser) -> None:
    score = device.verify("anna", voice(0, 7), CUT).score
    assert device.verify("anna", voice(0, 7), Threshold(score, None)).accepted
    above = Threshold(float(np.nextafter(score, 2)), None)
    assert not device.verify("anna", voice(0, 7), above).accepted


def test_a_profile_is_the_mean_over_all_recordings_and_clips(tmp_path: Path) -> None:
    device = new_device(tmp_path / "home")
    long = np.concatenate([voice(0, number) for number in range(4)])
    clips = round(len(trim_silence(long)) / SAMPLES)
    assert clips > 2
    device.enrol("anna", [long])
    device.enrol("anna", [voice(0, 5)])
    vault = device._vault
    user = vault.user("anna")
    profile = vault.profile(user, OLD.model_hash).profile
    assert profile.utterances == clips + 1
    engine = CompiledEngine(OLD)
    speech = trim_silence(vault.recordings(user)[0])
    pieces = [speech[start * SAMPLES :][:SAMPLES] for start in range(clips)]
    pieces.append(trim_silence(vault.recordings(user)[1]))
    embeddings = np.stack([engine.embed(piece) for piece in pieces])
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    mean = units.mean(axis=0)
    np.testing.assert_allclose(profile.vector, mean / np.linalg.norm(mean), atol=1e-6)


def test_a_new_model_has_re_enrolled_everybody_when_it_takes_over(device: Recogniser) -> None:
    assert device.use_model(NEW, THRESHOLDS) == 2
    assert device.verify("anna", voice(0, 7), CUT).model_hash == NEW.model_hash
    assert_tells_apart(device)
    assert_tells_apart(open_device(home_of(device)))


def test_an_old_profile_is_never_scored_under_the_new_model(device: Recogniser) -> None:
    vault = device._vault
    user = vault.user("anna")
    folder = home_of(device) / "users" / user.id
    old = (folder / f"{OLD.model_hash}.{user.revision}.profile").read_bytes()
    device.use_model(NEW, THRESHOLDS)
    new = folder / f"{NEW.model_hash}.{user.revision}.profile"
    new.write_bytes(old)
    with pytest.raises(FedspkError, match="another device, user or model"):
        vault.profile(user, NEW.model_hash)
    assert device.verify("anna", voice(0, 7), CUT).accepted
    assert new.read_bytes() != old  # it was made anew
    new.unlink()
    assert device.verify("anna", voice(0, 7), CUT).accepted
    with pytest.raises(FedspkError, match="cannot be compared"):
        vault.profile(user, OLD.model_hash).score(CompiledEngine(NEW).embed(voice(0, 7)), "x")


def test_the_return_is_instant(device: Recogniser, monkeypatch: pytest.MonkeyPatch) -> None:
    device.use_model(NEW, ())
    with monkeypatch.context() as patch:
        patch.setattr(CompiledEngine, "embed", None)
        assert device.use_previous() == 0
    assert device.versions.current.model_hash == OLD.model_hash
    assert device.versions.current.thresholds == THRESHOLDS
    assert_tells_apart(device)
    assert device.use_previous() == 0
    assert device.versions.current.model_hash == NEW.model_hash


def test_who_was_enrolled_since_is_re_enrolled_on_return(device: Recogniser) -> None:
    device.use_model(NEW, THRESHOLDS)
    device.enrol("carl", [voice(2, 0)])
    device.enrol("anna", [voice(0, 4)])
    assert device.use_previous() == 2
    assert device.verify("carl", voice(2, 7), CUT).accepted
    assert_tells_apart(device)


def test_there_is_no_previous_model_at_first(device: Recogniser) -> None:
    with pytest.raises(FedspkError, match="no previous one"):
        device.use_previous()


def test_the_same_model_again_brings_new_thresholds_and_keeps_the_previous(
    device: Recogniser,
) -> None:
    device.use_model(NEW, ())
    assert device.use_model(NEW, THRESHOLDS) == 0
    assert device.versions.current.thresholds == THRESHOLDS
    assert device.versions.previous is not None
    assert device.versions.previous.model_hash == OLD.model_hash


def test_only_two_models_and_their_profiles_are_kept(device: Recogniser) -> None:
    for seed in (2, 3, 4):
        device.use_model(toy_model(seed), THRESHOLDS)
    home = home_of(device)
    kept = {toy_model(seed) for seed in (3, 4)}
    assert {path.stem for path in (home / "models").iterdir()} == {each.digest for each in kept}
    profiles = {path.name.partition(".")[0] for path in home.rglob("*.profile")}
    assert profiles == {each.model_hash for each in kept}


def test_another_process_changes_the_model_and_this_one_follows(device: Recogniser) -> None:
    open_device(home_of(device)).use_model(NEW, THRESHOLDS)
    assert device.verify("anna", voice(0, 7), CUT).model_hash == NEW.model_hash
    device.enrol("carl", [voice(2, 0)])
    assert device.verify("carl", voice(2, 7), CUT).accepted


def test_an_enrolment_is_under_the_model_that_another_process_changed_to(
    device: Recogniser,
) -> None:
    open_device(home_of(device)).use_model(NEW, THRESHOLDS)
    device.enrol("carl", [voice(2, 0)])
    assert open_device(home_of(device)).verify("carl", voice(2, 7), CUT).accepted


def test_silence_before_a_voice_changes_nothing(device: Recogniser) -> None:
    """A model hears the first seconds only."""
    sound = voice(0, 7)
    late = np.concatenate([np.zeros(SAMPLES, np.float32), sound])
    score = device.verify("anna", sound, CUT).score
    assert device.verify("anna", late, CUT).score == pytest.approx(score, abs=0.02)


def test_a_model_file_that_was_exchanged_is_refused(device: Recogniser) -> None:
    home = home_of(device)
    device.use_model(NEW, THRESHOLDS)
    shutil.copy(home / "models" / f"{OLD.digest}.onnx", home / "models" / f"{NEW.digest}.onnx")
    with pytest.raises(FedspkError, match="not the model that was taken into use"):
        open_device(home).follow()
    later = open_device(home)
    assert later.use_model(OLD, THRESHOLDS) == 0
    assert_tells_apart(later)


def test_a_model_that_does_not_load_changes_nothing(device: Recogniser, tmp_path: Path) -> None:
    broken = toy_device.CompiledModel(64 * "f", SAMPLES, b"no graph")
    with pytest.raises(FedspkError, match="cannot be loaded"):
        device.use_model(broken, THRESHOLDS)
    assert device.versions.current.model_hash == OLD.model_hash
    assert_tells_apart(device)


@pytest.mark.parametrize(
    ("asked", "score"), [(0.001, 0.9), (0.009, 0.9), (0.01, 0.8), (0.05, 0.8), (1.0, 0.7)]
)
def test_the_threshold_is_the_nearest_that_is_as_strict(asked: float, score: float) -> None:
    version = Version(OLD.model_hash, OLD.digest, SAMPLES, THRESHOLDS)
    found = version.threshold(asked)
    assert found.score == score
    assert found.false_accept is not None
    assert found.false_accept <= asked


def test_no_threshold_is_made_up() -> None:
    with pytest.raises(FedspkError, match=r"its strictest is for 0\.001"):
        Version(OLD.model_hash, OLD.digest, SAMPLES, THRESHOLDS).threshold(0.0005)
    with pytest.raises(FedspkError, match="without calibrated thresholds"):
        Version(OLD.model_hash, OLD.digest, SAMPLES).threshold(0.01)

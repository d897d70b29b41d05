"""`fedspk device`: what is typed on a device, what is answered, and what a mistake gets."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import toy_device
import typed_commands
from sounds import REAL_SPEECH, needs_real_speech
from toy_device import THRESHOLDS, open_device, toy_model, voice

from clients import compiled
from clients.recogniser import Recogniser
from fedspk.audio import save_audio
from fedspk.cli import run
from fedspk.engine import ModelDescription, model_hash, save_described
from fedspk.features import FrontEndConfig
from fedspk.model import HeadConfig, build_model
from fedspk.release import Architecture, Manifest

COMMANDS = ["init", "enroll", "verify", "identify", "status", "forget", "use-model"]


pytestmark = pytest.mark.usefixtures("quick_passphrases", "core_dumps_as_they_were")


@pytest.fixture
def place(where: list[str], device: Recogniser) -> list[str]:
    """The options that say where the device is, made of two users."""
    return where


def sound(folder: Path, speaker: int, number: int, name: str = "") -> str:
    path = folder / f"{name or f'{speaker}-{number}'}.wav"
    save_audio(path, voice(speaker, number))
    return str(path)


def answer(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    return typed_commands.answer(capsys, "device", *arguments, code=code)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    return typed_commands.fails(capsys, "device", *arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert f"Example: fedspk device {command}" in " ".join(
        answer(capsys, command, "--help").split()
    )


def test_the_user_is_accepted_and_an_impostor_refused(
    capsys: pytest.CaptureFixture[str], place: list[str], tmp_path: Path
) -> None:
    text = answer(capsys, "verify", *place, "--user", "anna", sound(tmp_path, 0, 7))
    assert "anna: accepted" in text
    assert "threshold 0.800, which 1 % of impostors reach" in text
    text = answer(capsys, "verify", *place, "--user", "anna", sound(tmp_path, 1, 7), code=1)
    assert "anna: refused" in text


def test_verify_answers_scripts(
    capsys: pytest.CaptureFixture[str], place: list[str], tmp_path: Path
) -> None:
    file = sound(tmp_path, 0, 7)
    found = json.loads(
        answer(capsys, "verify", *place, "--user", "anna", file, "--false-accept", "0.1", "--json")
    )
    assert found.pop("score") > 0.9
    assert found == {
        "user": "anna",
        "accepted": True,
        "threshold": 0.7,
        "false_accept": 0.1,
        "model": toy_model().model_hash,
        "warnings": [],
    }
    given = ["--threshold", "1.0", "--json"]
    found = json.loads(answer(capsys, "verify", *place, "--user", "anna", file, *given, code=1))
    assert not found["accepted"]
    assert found["false_accept"] is None


def test_identify_names_the_speaker_and_its_rate_grows_with_the_users(
    capsys: pytest.CaptureFixture[str], place: list[str], tmp_path: Path
) -> None:
    found = json.loads(answer(capsys, "identify", *place, sound(tmp_path, 1, 7), "--json"))
    assert found["speaker"] == "bert"
    assert found["scores"]["bert"] > 0.8 > found["scores"]["anna"]
    assert found["false_accept"] == pytest.approx(2 * 0.01)
    text = answer(capsys, "identify", *place, sound(tmp_path, 3, 7), code=1)
    assert text.startswith("nobody enrolled")


def test_enroll_status_and_forget(
    capsys: pytest.CaptureFixture[str], place: list[str], tmp_path: Path
) -> None:
    files = [sound(tmp_path, 2, number) for number in range(2)]
    assert "carl: enrolled with 2 recordings, 5 s." in answer(
        capsys, "enroll", *place, "--user", "carl", *files
    )
    found = json.loads(answer(capsys, "status", *place, "--json"))
    assert [user["name"] for user in found["users"]] == ["anna", "bert", "carl"]
    assert found["users"][2] == {"name": "carl", "recordings": 2, "seconds": 5.0}
    assert found["model"] == toy_model().model_hash
    assert found["protection"] == "passphrase"
    assert found["thresholds"][0] == {"false_accept": 0.001, "score": 0.9}
    assert answer(capsys, "forget", *place, "--user", "carl") == "carl: forgotten.\n"
    text = answer(capsys, "status", *place)
    assert "carl" not in text
    assert "calibrated for 0.1 %, 1 %, 10 % false accepts" in text
    assert "'carl' is not enrolled" in fails(capsys, "forget", *place, "--user", "carl")


def test_no_command_leaves_a_core_dump(
    capsys: pytest.CaptureFixture[str], place: list[str]
) -> None:
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))
    answer(capsys, "status", *place)
    assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))
    assert "no such model file" in fails(capsys, "init", *place, "--model", "none.safetensors")
    assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0


def test_a_threshold_is_a_number(
    capsys: pytest.CaptureFixture[str], place: list[str], tmp_path: Path
) -> None:
    file = sound(tmp_path, 0, 1)
    for option in ("--threshold", "--false-accept"):
        sentence = fails(capsys, "verify", *place, "--user", "anna", option, "nan", file)
        assert "must be numbers" in sentence


@pytest.mark.parametrize("poll", ["nan", "inf", "0.5", "1e11"])
def test_a_poll_period_that_will_not_do_is_refused(
    capsys: pytest.CaptureFixture[str], place: list[str], poll: str
) -> None:
    assert "--poll must be from 1" in fails(capsys, "run", *place, "--poll", poll)


def test_a_damaged_user_is_shown_and_forgotten_by_id(
    capsys: pytest.CaptureFixture[str], place: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "home" / "users" / open_device(tmp_path / "home")._vault.user("anna").id
    (folder / "card.box").write_bytes(b"x" * 60)
    assert f"damaged   {folder.name}: " in answer(capsys, "status", *place)
    assert json.loads(answer(capsys, "status", *place, "--json"))["damaged"] == [folder.name]
    answer(capsys, "forget", "--user", folder.name, *place)
    assert not folder.exists()


def test_one_bad_recording_and_nothing_is_enrolled(
    capsys: pytest.CaptureFixture[str], place: list[str], tmp_path: Path
) -> None:
    good = sound(tmp_path, 2, 0)
    clipped = tmp_path / "clipped.wav"
    save_audio(clipped, np.clip(30 * voice(2, 1), -1, 1))
    short = tmp_path / "short.wav"
    save_audio(short, voice(2, 2, seconds=0.6))
    line = fails(capsys, "enroll", *place, "--user", "carl", good, str(clipped), str(short))
    assert line.startswith("fedspk: nothing was enrolled: ")
    assert f"{clipped}: clipped: " in line
    assert f"{short}: too short: " in line
    assert good not in line
    assert len(open_device(tmp_path / "home")._vault.users()) == 2


def test_verify_warns_of_a_poor_recording_and_refuses_a_useless_one(
    capsys: pytest.CaptureFixture[str], place: list[str], tmp_path: Path
) -> None:
    clipped = tmp_path / "clipped.wav"
    save_audio(clipped, np.clip(30 * voice(0, 1), -1, 1))
    assert run(["device", "verify", *place, "--user", "anna", str(clipped), "--json"]) in (0, 1)
    captured = capsys.readouterr()
    assert captured.err.startswith(f"fedspk: {clipped}: clipped: ")
    assert json.loads(captured.out)["warnings"][0].startswith("clipped: ")
    save_audio(tmp_path / "silent.wav", np.zeros(48_000, np.float32))
    silent = str(tmp_path / "silent.wav")
    assert "silent: no speech" in fails(capsys, "verify", *place, "--user", "anna", silent)


def test_without_calibration_nothing_is_decided(
    capsys: pytest.CaptureFixture[str], place: list[str], tmp_path: Path
) -> None:
    open_device(tmp_path / "home").use_model(toy_model(2), ())
    file = sound(tmp_path, 0, 7)
    line = fails(capsys, "verify", *place, "--user", "anna", file)
    assert "without calibrated thresholds" in line
    assert "--threshold" in line
    given = ["--threshold", "0.8"]
    text = answer(capsys, "verify", *place, "--user", "anna", file, *given)
    assert "unknown false-accept rate" in text


def test_wrong_input_is_one_sentence(
    capsys: pytest.CaptureFixture[str], place: list[str], tmp_path: Path
) -> None:
    file = sound(tmp_path, 0, 7)
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"another passphrase")
    wrong.chmod(0o600)
    other = [*place[:2], "--passphrase-file", str(wrong)]
    assert "passphrase is wrong" in fails(capsys, "verify", *other, "--user", "anna", file)
    assert "'eve' is not enrolled" in fails(capsys, "verify", *place, "--user", "eve", file)
    assert "none.wav" in fails(capsys, "enroll", *place, "--user", "eve", "none.wav")
    nowhere = ["--home", str(tmp_path / "nowhere"), *place[2:]]
    assert "fedspk device init" in fails(capsys, "status", *nowhere)
    assert "either --model FILE" in fails(capsys, "use-model", *place)
    assert "either --model FILE" in fails(
        capsys, "use-model", *place, "--previous", "--model", "x.safetensors"
    )
    assert "no previous one" in fails(capsys, "use-model", *place, "--previous")
    assert "no such model file" in fails(capsys, "use-model", *place, "--model", "x.safetensors")
    (tmp_path / "home").chmod(0o755)
    assert "other users" in fails(capsys, "status", *place)


def test_no_secret_and_no_voice_is_printed_or_logged(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    place: list[str],
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.DEBUG)
    vault = open_device(tmp_path / "home")._vault
    user = vault.user("anna")
    vector = vault.profile(user, toy_model().model_hash).profile.vector
    file = sound(tmp_path, 0, 7)
    for arguments in (
        ["status", "--json"],
        ["status"],
        ["verify", "--user", "anna", file],
        ["verify", "--user", "anna", file, "--json"],
        ["identify", file],
        ["enroll", "--user", "anna", file],
    ):
        assert run(["device", arguments[0], *place, *arguments[1:]]) == 0
    captured = capsys.readouterr()
    said = captured.out + captured.err + caplog.text
    secrets = [user.key.hex(), vault._key.hex(), toy_device.PASSPHRASE.decode()]
    assert not any(secret in said for secret in secrets)
    assert not any(f"{number:.4f}" in said for number in vector)


def made_model(path: Path, seed: int) -> Manifest:
    """Write a small model and return its manifest, with a threshold."""
    front_end = FrontEndConfig(frames=100)
    description = ModelDescription("tdnn", front_end)
    model = build_model("tdnn", HeadConfig(), frames=100, seed=seed)
    save_described(path, model, description)
    return Manifest.model_validate(
        {
            "version": seed,
            "architecture": Architecture.of(description),
            "content_hash": model_hash(description, model.encoder),
            "length": path.stat().st_size,
            "thresholds": [{"false_accept_rate": 0.01, "threshold": -1.0}],
            "created": "2026-01-01T00:00:00Z",
        }
    )


def test_a_device_from_model_file_to_model_file(
    capsys: pytest.CaptureFixture[str], where: list[str], tmp_path: Path
) -> None:
    model, text = tmp_path / "one.safetensors", tmp_path / "one.json"
    manifest = made_model(model, 1)
    text.write_bytes(manifest.to_json())
    files = ["--model", str(model), "--manifest", str(text)]
    assert manifest.content_hash[:12] in answer(capsys, "init", *where, *files)
    assert "device's folder already" in fails(capsys, "init", *where, *files)
    answer(capsys, "enroll", *where, "--user", "anna", sound(tmp_path, 0, 0))
    assert "accepted" in answer(capsys, "verify", *where, "--user", "anna", sound(tmp_path, 0, 1))
    other = tmp_path / "two.safetensors"
    newer = made_model(other, 2)
    assert "users re-enrolled: 1" in answer(capsys, "use-model", *where, "--model", str(other))
    found = json.loads(answer(capsys, "status", *where, "--json"))
    assert (found["model"], found["previous"]) == (newer.content_hash, manifest.content_hash)
    assert "users re-enrolled: 0" in answer(capsys, "use-model", *where, "--previous")


def test_a_model_that_is_not_its_manifests_is_refused(
    capsys: pytest.CaptureFixture[str],
    place: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled, "compile_model", None)
    model, text = tmp_path / "one.safetensors", tmp_path / "one.json"
    manifest = made_model(model, 1)
    use = ["use-model", *place, "--model", str(model), "--manifest", str(text)]
    for change, said in (
        ({"content_hash": 64 * "0"}, "content hash"),
        ({"length": 7}, "7"),
        ({"minimum_client": "99.0.0"}, "needs fedspk 99.0.0"),
    ):
        text.write_bytes(manifest.model_copy(update=change).to_json())
        assert said in fails(capsys, *use)
    gan = Manifest.model_validate(
        manifest.model_dump()
        | {
            "kind": "gan",
            "architecture": None,
            "generator": {"front_end": {}, "corpus": "corpus-1", "speakers": 3},
            "thresholds": (),
        }
    )
    text.write_bytes(gan.to_json())
    assert "no speaker model" in fails(capsys, *use)
    text.write_text("{}")
    assert "one.json" in fails(capsys, *use)


@needs_real_speech
def test_real_voices_are_enrolled(capsys: pytest.CaptureFixture[str], place: list[str]) -> None:
    files = [str(path) for path in sorted(REAL_SPEECH.glob("so0024/*.flac"))[-3:]]
    answer(capsys, "enroll", *place, "--user", "reader", *files[:2])
    found = json.loads(answer(capsys, "identify", *place, files[2], "--json"))
    assert found["speaker"] == "reader"
    assert found["threshold"] == THRESHOLDS[1].score

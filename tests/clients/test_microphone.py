"""Enrolment from the microphone; the sound device alone is made up."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_device import new_device, open_device, voice

from clients.microphone import meter, record
from fedspk.audio import SAMPLE_RATE, FloatArray
from fedspk.cli import run
from fedspk.errors import FedspkError


class PortAudioError(Exception):
    """What sounddevice raises."""


class FakeDevice:
    """The part of the package sounddevice that is used: a microphone that plays a sound."""

    PortAudioError = PortAudioError

    def __init__(self, sound: FloatArray | None, rate: int = SAMPLE_RATE) -> None:
        self.sound = sound
        self.rate = rate
        self.is_open = False
        self.place = 0

    def query_devices(self, kind: str) -> dict[str, Any]:
        assert kind == "input"
        if self.sound is None:
            raise PortAudioError("Error querying device -1")
        return {"default_samplerate": float(self.rate)}

    def InputStream(self, samplerate: int, channels: int, dtype: str) -> FakeDevice:  # noqa: N802
        assert (samplerate, channels, dtype) == (self.rate, 1, "float32")
        return self

    def __enter__(self) -> FakeDevice:
        self.is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        self.is_open = False

    def read(self, frames: int) -> tuple[FloatArray, bool]:
        assert self.is_open
        assert self.sound is not None
        block = np.resize(self.sound, self.place + frames)[self.place :]
        self.place += frames
        return block[:, np.newaxis], False


pytestmark = pytest.mark.usefixtures("quick_passphrases")


@pytest.fixture
def command(tmp_path: Path, where: list[str], core_dumps_as_they_were: None) -> list[str]:
    new_device(tmp_path / "home")
    return ["device", "enroll", *where, "--user", "anna", "--microphone", "--seconds", "2.5"]


def plug_in(monkeypatch: pytest.MonkeyPatch, device: object) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", device)


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_what_is_heard_is_returned_at_16_khz(monkeypatch: pytest.MonkeyPatch, rate: int) -> None:
    sound = voice(0, 0)
    from fedspk.audio import resample

    played = (
        sound
        if rate == SAMPLE_RATE
        else np.interp(
            np.arange(round(2.5 * rate)) / rate, np.arange(len(sound)) / SAMPLE_RATE, sound
        ).astype(np.float32)
    )
    device = FakeDevice(played, rate)
    plug_in(monkeypatch, device)
    told: list[tuple[float, float]] = []
    heard = record(2.0, lambda at, level: told.append((at, level)))
    assert len(heard) == 2 * SAMPLE_RATE
    np.testing.assert_allclose(heard, resample(played, rate)[: len(heard)], atol=0.02)
    assert [at for at, _ in told] == pytest.approx(np.arange(1, 21) / 10)
    assert told[3][1] == pytest.approx(
        20 * np.log10(np.abs(played[3 * rate // 10 : 4 * rate // 10]).max()), abs=0.01
    )
    assert not device.is_open


def test_a_user_is_enrolled_from_the_microphone(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    tmp_path: Path,
) -> None:
    plug_in(monkeypatch, FakeDevice(voice(0, 0)))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert run(command) == 0
    said = capsys.readouterr()
    assert "microphone: 2.5 s of speech" in said.out
    assert "anna: enrolled with 1 recordings" in said.out
    assert said.err.splitlines() == ["Speak now, for 2.5 s.", "That will do."]
    device = open_device(tmp_path / "home")
    assert device.verify("anna", voice(0, 7), 0.01).accepted
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert all(tmp_path / "home" in path.parents for path in written)


def test_the_level_is_shown_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    plug_in(monkeypatch, FakeDevice(voice(0, 0)))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert run(command) == 0
    lines = capsys.readouterr().err.split("\r")
    assert len(lines) == 26
    assert lines[-1].startswith("  2.5 s [#")


def test_a_poor_recording_is_told_and_not_taken(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    tmp_path: Path,
) -> None:
    plug_in(monkeypatch, FakeDevice(np.clip(30 * voice(0, 0), -1, 1)))
    assert run(command) == 2
    assert "microphone: clipped" in capsys.readouterr().err
    plug_in(monkeypatch, FakeDevice(np.zeros(100, np.float32)))
    assert run(command) == 2
    assert "microphone: silent" in capsys.readouterr().err
    assert open_device(tmp_path / "home")._vault.users() == []


def test_no_microphone_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    plug_in(monkeypatch, FakeDevice(None))
    assert run(command) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith("fedspk: there is no microphone that can be used (Error querying device -1)")
    )


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (ImportError("No module"), r"pip install 'fedspk\[microphone\]'"),
        (OSError("PortAudio library not found"), "libportaudio2"),
    ],
)
def test_a_missing_package_or_library_is_named(
    monkeypatch: pytest.MonkeyPatch, fault: Exception, said: str
) -> None:
    real = builtins.__import__

    def fail(name: str, *arguments: Any) -> Any:
        if name == "sounddevice":
            raise fault
        return real(name, *arguments)

    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(FedspkError, match=said):
        record(1.0, lambda *_: None)


def test_files_or_the_microphone_but_not_both(
    capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    for arguments in ([*command, "a.wav"], command[: command.index("--microphone")]):
        assert run(arguments) == 2
        assert "either recordings or --microphone" in capsys.readouterr().err


def test_the_meter_says_what_to_change() -> None:
    assert "too loud" in meter(1.0, -0.2)
    assert "too low" in meter(1.0, -45.0)
    assert "too" not in meter(1.0, -20.0)
    assert len({len(meter(1.0, level)) for level in (-100.0, -20.0, 0.0)}) == 1

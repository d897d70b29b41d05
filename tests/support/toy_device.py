"""A device for tests: a model that is made of one matrix, quick to compile, and a passphrase.

As a program it takes one step of a device's life again and again, killed at every change of a file,
and leaves what is on the disk then in WORK/1, WORK/2, ...; the last one was not interrupted:

    python toy_device.py HOME WORK STEP
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients import vault_key
from clients.compiled import CompiledModel
from clients.recogniser import Recogniser, create_device
from clients.vault import Vault
from clients.versions import Threshold
from fedspk.audio import SAMPLE_RATE, FloatArray

PASSPHRASE = b"correct horse battery"
THRESHOLDS = (Threshold(0.9, 0.001), Threshold(0.8, 0.01), Threshold(0.7, 0.1))
SAMPLES = 32_000
_FRAME = 400
_BANDS = 40


def ask() -> bytes:
    return PASSPHRASE


def quick_passphrases(patch: pytest.MonkeyPatch) -> None:
    """Spend next to nothing on deriving keys from passphrases, in this process."""
    for name, value in (("_MEMORY_KIB", 64), ("_PASSES", 1), ("_LANES", 1)):
        patch.setattr(vault_key, name, value)


@cache
def toy_model(seed: int = 1) -> CompiledModel:
    """Return a model: the mean log spectrum, rotated at random, so that no two models agree."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    time = np.arange(_FRAME)[:, None]
    band = 2 * np.pi * np.geomspace(100, 6000, _BANDS)[None, :] / 16_000
    waves = np.hstack([np.cos(band * time), np.sin(band * time)]).astype(np.float32)
    rotation = np.linalg.qr(rng.standard_normal((_BANDS, _BANDS)))[0].astype(np.float32)
    centring = (np.eye(_BANDS) - 1 / _BANDS).astype(np.float32)
    constants: dict[str, Any] = {
        "frames": np.array([SAMPLES // _FRAME, _FRAME]),
        "parts": np.array([SAMPLES // _FRAME, 2, _BANDS]),
        "waves": waves,
        "floor": np.array(1e-4, np.float32),
        "rotation": centring @ rotation,
        "axis": np.array([1]),
        "first": np.array([0]),
    }
    nodes = [
        helper.make_node("Reshape", ["audio", "frames"], ["framed"]),
        helper.make_node("MatMul", ["framed", "waves"], ["waved"]),
        helper.make_node("Reshape", ["waved", "parts"], ["pairs"]),
        helper.make_node("ReduceSumSquare", ["pairs", "axis"], ["power"], keepdims=0),
        helper.make_node("Add", ["power", "floor"], ["audible"]),
        helper.make_node("Log", ["audible"], ["level"]),
        helper.make_node("ReduceMean", ["level", "first"], ["mean"], keepdims=1),
        helper.make_node("MatMul", ["mean", "rotation"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("audio", TensorProto.FLOAT, [1, SAMPLES])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, _BANDS])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    content = made.SerializeToString()
    return CompiledModel(hashlib.sha256(b"toy" + content).hexdigest(), SAMPLES, content)


def voice(speaker: int, utterance: int, seconds: float = 2.5) -> FloatArray:
    """Return (samples,) float32: noise of the speaker's own colour, in syllables, over quiet."""
    rng = np.random.default_rng([speaker, utterance])
    spectrum = np.fft.rfft(rng.standard_normal(round(seconds * SAMPLE_RATE)))
    octaves = np.linspace(0, 7, 8)
    colour = np.random.default_rng(speaker).normal(0, 9, size=8)  # dB
    heard = np.log2(np.maximum(np.arange(len(spectrum)) / seconds, 62.5) / 62.5)
    sound = np.fft.irfft(spectrum * 10 ** (np.interp(heard, octaves, colour) / 20))
    syllables = np.arange(len(sound)) // 2000 % 4 > 0
    sound *= np.where(syllables, 0.1, 0.001) / sound.std()
    return sound.astype(np.float32)


def new_device(home: Path, *names: str) -> Recogniser:
    """Return a new device with these users, three recordings each."""
    vault = create_device(home, toy_model(), THRESHOLDS, "passphrase", ask)
    recogniser = Recogniser(vault)
    for speaker, name in enumerate(names):
        recogniser.enrol(name, [voice(speaker, number) for number in range(3)])
    return recogniser


def open_device(home: Path) -> Recogniser:
    return Recogniser(Vault.open(home, ask))


def take_step(home: Path, step: str) -> None:
    """Take one step that changes the device."""
    if step == "init":
        new_device(home)
        return
    recogniser = open_device(home)
    if step == "enrol":
        recogniser.enrol("carl", [voice(2, number) for number in range(2)])
    elif step == "enrol more":
        recogniser.enrol("anna", [voice(0, 3)])
    elif step == "use model":
        recogniser.use_model(toy_model(2), THRESHOLDS)
    elif step == "return":
        recogniser.use_previous()
    elif step == "forget":
        vault = Vault.open(home, ask)
        with vault.writing():
            vault.forget(vault.user("anna"))


def die_at_change(number: int) -> None:
    """Kill this process just before its n-th change of a file or folder, but for mere modes."""
    left = number
    changes = {"os.rename", "os.remove", "os.rmdir", "os.symlink"}

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        is_new_file = event == "open" and (arguments[2] or 0) & os.O_CREAT
        is_new_folder = event == "os.mkdir" and not Path(arguments[0]).exists()
        if event in changes or is_new_file or is_new_folder:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def die_everywhere(template: Path, work: Path, step: Callable[[Path], None]) -> None:
    """Leave in `work` a copy of the device for every change at which the step was interrupted."""
    for number in itertools.count(1):
        home = work / str(number)
        if template.exists():
            shutil.copytree(template, home)
        child = os.fork()
        if child == 0:
            die_at_change(number)
            step(home)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            return
        assert code == -signal.SIGKILL, code


if __name__ == "__main__":
    quick_passphrases(pytest.MonkeyPatch())
    toy_model(2)
    die_everywhere(Path(sys.argv[1]), Path(sys.argv[2]), partial(take_step, step=sys.argv[3]))

"""A compiled model gives PyTorch's embeddings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sounds import noise, tone

from clients import compiled
from clients.compiled import CompiledEngine, compile_model
from fedspk.encoders import list_encoders
from fedspk.engine import ModelDescription, SpeechEngine, save_described
from fedspk.errors import FedspkError
from fedspk.features import FrontEndConfig
from fedspk.model import HeadConfig, build_model

_SMALL = {"vggm": {"width": 0.1}, "vggm-pooled": {"width": 0.1}}


def write_model(path: Path, encoder: str = "tdnn", front_end: FrontEndConfig | None = None) -> str:
    params = _SMALL.get(encoder, {})
    front_end = front_end or FrontEndConfig(frames=100)
    model = build_model(
        encoder, HeadConfig(), bins=front_end.bins, frames=front_end.frames, seed=1, **params
    )
    return save_described(path, model, ModelDescription(encoder, front_end, params))


def assert_agrees(path: Path, model_hash: str) -> None:
    model = compile_model(path)
    assert model.model_hash == model_hash
    engine, original = CompiledEngine(model), SpeechEngine.load(path)
    assert engine.samples == original.front_end.samples
    for sound in (tone(2.0), tone(0.4), noise(1.0)):
        expected, got = original.embed(sound), engine.embed(sound)
        cosine = expected @ got / np.linalg.norm(expected) / np.linalg.norm(got)
        assert cosine > 0.99999


def test_a_compiled_model_agrees_with_pytorch(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    assert_agrees(path, write_model(path))


@pytest.mark.slow
@pytest.mark.parametrize("encoder", list_encoders())
def test_every_encoder_compiles(tmp_path: Path, encoder: str) -> None:
    path = tmp_path / "model.safetensors"
    assert_agrees(path, write_model(path, encoder))


@pytest.mark.slow
@pytest.mark.parametrize("front_end", [
    FrontEndConfig(kind="mfcc", bins=23, frames=100),
    FrontEndConfig(kind="fbank", window_s=0.025, frames=100),
])  # fmt: skip
def test_every_front_end_compiles(tmp_path: Path, front_end: FrontEndConfig) -> None:
    path = tmp_path / "model.safetensors"
    assert_agrees(path, write_model(path, front_end=front_end))


def test_an_unfaithful_compilation_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    write_model(path)
    monkeypatch.setattr(compiled, "_export", lambda *_: b"")
    wrong = type("Wrong", (), {"embed": lambda *_: np.ones(256, np.float32)})
    monkeypatch.setattr(compiled, "CompiledEngine", lambda _: wrong())
    monkeypatch.setattr(SpeechEngine, "embed", lambda *_: np.eye(1, 256)[0])
    with pytest.raises(FedspkError, match="another embedding when compiled"):
        compile_model(path)


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_without_onnx_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    path = tmp_path / "model.safetensors"
    write_model(path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FedspkError, match=rf"{package} is not installed.*fedspk\[onnx\]"):
        compile_model(path)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no model")
    with pytest.raises(FedspkError, match="not a whole safetensors"):
        compile_model(tmp_path / "model.safetensors")


def test_the_runtime_tells_nobody_what_it_does(tmp_path: Path) -> None:
    code = "from clients.compiled import _import_runtime; _import_runtime()"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []  # it keeps the identity that it would report under there

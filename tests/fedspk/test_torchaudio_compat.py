"""torchaudio is found, found without its extension, or missing: each is said plainly."""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Iterator

import pytest

from fedspk.errors import FedspkError
from fedspk.torchaudio_compat import import_torchaudio, torchaudio_status


@pytest.fixture
def not_imported_yet() -> Iterator[None]:
    saved = {name: module for name, module in sys.modules.items() if _belongs(name)}
    for name in saved:
        del sys.modules[name]
    yield
    for name in [name for name in sys.modules if _belongs(name)]:
        del sys.modules[name]
    sys.modules.update(saved)


def test_transforms_work_with_or_without_the_extension() -> None:
    torch = pytest.importorskip("torch")
    torchaudio = import_torchaudio()
    spectrogram = torchaudio.transforms.Spectrogram(n_fft=64)(torch.zeros(1, 640))
    assert spectrogram.shape == (1, 33, 21)


def test_status_names_version_and_state() -> None:
    status = torchaudio_status()
    assert import_torchaudio().__version__ in status
    assert "compiled extension" in status


@pytest.mark.usefixtures("not_imported_yet")
def test_missing_torchaudio_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [_Failing(_missing), *sys.meta_path])
    with pytest.raises(FedspkError, match="pip install torchaudio"):
        import_torchaudio()
    assert "not installed" in torchaudio_status()


@pytest.mark.usefixtures("not_imported_yet")
def test_torchaudio_that_fails_altogether_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "meta_path", [_Failing(_broken), *sys.meta_path])
    with pytest.raises(FedspkError, match="does not load beside this torch"):
        import_torchaudio()


@pytest.mark.usefixtures("not_imported_yet")
def test_extension_that_does_not_load_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")

    def fails(_: object) -> None:
        raise OSError("libcudart.so: cannot open shared object file")

    monkeypatch.setattr(torch.ops, "load_library", fails)
    assert "pure Python" in torchaudio_status()


class _Failing(importlib.abc.MetaPathFinder):
    def __init__(self, error: Exception) -> None:
        self._error = error

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname == "torchaudio":
            raise self._error


_missing = ModuleNotFoundError("No module named 'torchaudio'", name="torchaudio")
_broken = OSError("cannot load")


def _belongs(name: str) -> bool:
    return name == "torchaudio" or name.startswith("torchaudio.")

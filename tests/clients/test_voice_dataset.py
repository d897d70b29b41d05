"""A user's recordings as training data, in memory alone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from sounds import write_speakers
from toy_device import new_device

from clients.dataset import DeviceDataset
from clients.memory_folder import memory_folder
from clients.supernode import Federation, run_supernode
from clients.vault import Vault
from clients.voice_dataset import write_dataset
from fedspk.audio import save_audio
from fedspk.errors import FedspkError
from fedspk.features import FrontEndConfig

FRONT_END = FrontEndConfig(frames=60, bins=40)


pytestmark = pytest.mark.usefixtures("quick_passphrases")


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return new_device(tmp_path / "home", "anna")._vault


@pytest.fixture
def impostors(tmp_path: Path) -> Path:
    write_speakers(tmp_path / "others", speakers=2, utterances=3)
    return tmp_path / "others"


def test_recordings_become_a_device_that_can_train(vault: Vault, impostors: Path) -> None:
    with memory_folder() as folder:
        path = write_dataset(vault, "anna", impostors, FRONT_END, folder, index=3)
        found = DeviceDataset.open(path)
        assert (found.device, found.index) == (vault.device, 3)
        assert (len(found.owner_train), len(found.owner_validation)) == (2, 1)
        assert len(found.owner_train[0]) > 1  # crops of one recording
        assert found.impostor_labels == (0, 0, 1, 1)
        assert found.validation_impostor_labels == (0, 1)
        rows = [row for clip in (*found.owner_train, *found.impostors) for row in clip]
        assert len(set(rows)) == len(rows)
        features = found.table.gather(rows)
        assert features.shape == (len(rows), 60, 40)
        assert np.isfinite(features.numpy()).all()
        assert "anna" not in path.read_text()


def test_nobody_and_nothing_to_train_on_are_told(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "quiet" / "one").mkdir(parents=True)
    save_audio(tmp_path / "quiet" / "one" / "a.wav", np.zeros(16_000, np.float32))
    with memory_folder() as folder:
        with pytest.raises(FedspkError, match="is not enrolled"):
            write_dataset(vault, "bert", tmp_path / "quiet", FRONT_END, folder)
        with pytest.raises(FedspkError, match="holds no speech of others"):
            write_dataset(vault, "anna", tmp_path / "quiet", FRONT_END, folder)


def test_a_memory_folder_is_private_and_goes(tmp_path: Path) -> None:
    with memory_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "secret").write_text("x")
        with memory_folder() as other:
            assert folder.exists() and other != folder  # that of somebody alive stays
    assert not folder.exists()


def test_what_a_killed_process_left_is_deleted_by_the_next() -> None:
    code = "import os, clients.memory_folder as m\nwith m.memory_folder() as f:\n"
    code += "    (f / 'voice').touch(); print(f, flush=True); os._exit(9)"
    command = [sys.executable, "-c", code]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    left = Path(killed.stdout.strip())
    assert (left / "voice").exists()
    with memory_folder():
        assert not left.exists()


def test_a_disk_is_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with memory_folder() as folder:
        assert not folder.is_relative_to(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(FedspkError, match="not written to a disk"), memory_folder():
        pass


def test_a_device_that_follows_nobody_does_not_train(vault: Vault, impostors: Path) -> None:
    federation = Federation("127.0.0.1:9", impostors / "register.json")
    with pytest.raises(FedspkError, match="follows no main server"):
        run_supernode(vault, "anna", impostors, federation, threading.Event())

"""A device that follows a main server, for tests: real HTTP and files, models quick to compile.

As a program it makes a device or updates it again and again, killed at every change of a file, and
leaves what is on the disk then in WORK/1, WORK/2, ...; the last one was not interrupted:

    python following_device.py HOME WORK ADDRESS ROOT
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest
import toy_device
from toy_device import SAMPLES, ask, die_everywhere, toy_model, voice

from clients import updater
from clients.compiled import CompiledModel
from clients.followed import MainServer
from clients.recogniser import Recogniser
from clients.updater import Updater, create_following_device
from clients.vault import Vault
from clients.vault_key import KEY_FILE
from fedspk.model_file import ModelFile
from fedspk.remote import RemoteVersions

USERS = ("anna", "bert")


def quick_compile(path: Path) -> CompiledModel:
    """Return a toy model in place of a model file, with the file's own content hash."""
    with ModelFile.open(path) as file:
        model_hash = file.model_hash()
    toy = toy_model(int(model_hash[:4], 16))
    return CompiledModel(model_hash, SAMPLES, toy.graph)


def quickly(patch: pytest.MonkeyPatch) -> None:
    """Spend next to nothing on passphrases and compilation, in this process."""
    toy_device.quick_passphrases(patch)
    patch.setattr(updater, "compile_model", quick_compile)


def new_follower(home: Path, server: MainServer) -> Recogniser:
    """Return a new device of two users, three recordings each."""
    recogniser = Recogniser(create_following_device(home, server, "passphrase", ask))
    for speaker, name in enumerate(USERS):
        recogniser.enrol(name, [voice(speaker, number) for number in range(3)])
    return recogniser


def init_or_update(home: Path, server: MainServer) -> None:
    """Make the folder a device's if it is none, else look for a new version."""
    if (home / KEY_FILE).exists():
        Updater(Vault.open(home, ask)).check()
    else:
        create_following_device(home, server, "passphrase", ask)


if __name__ == "__main__":
    quickly(pytest.MonkeyPatch())
    template, work, address, root = sys.argv[1:]
    followed = MainServer(address, Path(root).read_bytes())
    with tempfile.TemporaryDirectory() as folder:  # imports what every child would import anew
        remote = RemoteVersions(address, Path(folder), followed.root)
        remote.fetch("model", 1, Path(folder) / "model")
    die_everywhere(Path(template), Path(work), lambda home: init_or_update(home, followed))

"""Secrets that a person or systemd gives: never on the command line nor in an environment variable.

Each comes from a file that only its owner may read, else from a credential that systemd hands to a
service, which a TPM may protect, else from the terminal.
"""

from __future__ import annotations

import ctypes
import getpass
import os
import resource
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from fedspk.errors import FedspkError

_PR_SET_DUMPABLE = 4  # prctl(2)


@dataclass(frozen=True)
class Secret:
    """One kind of secret.

    Args:
        name: as the terminal asks for it.
        option: the command's option that names a file.
        credential: the systemd credential that holds it; empty if none does.
    """

    name: str
    option: str
    credential: str = ""

    def read(self, file: Path | None, *, twice: bool = False) -> bytes:
        """Return the secret: the first line of where it comes from.

        Args:
            file: what the option named, if it was given.
            twice: a person who types it does so twice, as it is a new one.

        Raises:
            FedspkError: the file cannot be read, or others can, or there is no terminal to ask at.
        """
        if file is not None:
            check_private(file)
            return _first_line(file)
        credential = Path(os.environ.get("CREDENTIALS_DIRECTORY", "")) / self.credential
        if "CREDENTIALS_DIRECTORY" in os.environ and credential.is_file():
            # systemd guards the folder; where it grants access by ACL, the group bits show its mask
            check_private(credential, stat.S_IRWXO)
            return _first_line(credential)
        if not sys.stdin.isatty():
            raise FedspkError(
                f"{self.name} is needed and there is no terminal to ask at; give {self.option}."
            )
        typed = getpass.getpass(f"{self.name}: ")
        if twice and getpass.getpass("The same again: ") != typed:
            raise FedspkError(f"{self.name} was typed differently; nothing was written.")
        return typed.encode()


def leave_no_core_dump() -> None:
    """Keep a crash of this process from writing keys to the disk."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    if sys.platform == "linux":  # the limit does not hold where a program collects the dumps
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def check_private(path: Path, foreign: int = stat.S_IRWXG | stat.S_IRWXO) -> None:
    """Refuse a file or folder that is not this user's alone.

    Args:
        path: what to look at.
        foreign: the permission bits that must not be set.

    Raises:
        FedspkError: others may read or write it, or it belongs to somebody else.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise FedspkError(f"{path}: cannot be read ({error.strerror}).") from error
    if status.st_mode & foreign:
        raise FedspkError(
            f"{path}: other users of this machine may use it; take their rights away with "
            f"`chmod go= {path}`."
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise FedspkError(f"{path}: belongs to another user; it must be yours.")


def _first_line(file: Path) -> bytes:
    try:
        return file.read_bytes().split(b"\n", 1)[0].removesuffix(b"\r")
    except OSError as error:
        raise FedspkError(f"{file}: cannot be read ({error.strerror}).") from error

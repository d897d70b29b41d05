"""Identities of devices and the register of a fleet, as files.

In a fleet every device makes its own identity and hands out the public half alone, and the
register comes from whoever runs the fleet. A simulated fleet does both here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from fedspk.errors import FedspkError
from fedspk.files import PARTIAL
from fedspk.secagg.keys import DeviceRegister, Identity

IDENTITY_FILE = "identity.json"
"""A device's identity, in the folder of what is private to it."""

REGISTER_FILE = "register.json"
"""The fleet's register, in the folder of the devices' descriptions."""


def create_identity(device: str, path: Path) -> Identity:
    """Make an identity and write it to a file that is not there yet.

    Raises:
        FedspkError: the file is there, the name will not do, or the file cannot be written.
    """
    identity = Identity.generate(device)
    path = Path(path)
    unnamed = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    identity.save(unnamed)
    try:
        os.link(unnamed, path)  # unlike a rename, fails when the file is there
    except FileExistsError:
        raise FedspkError(
            f"{path}: is there already; an identity that is overwritten is lost for good."
        ) from None
    except OSError as error:
        raise FedspkError(f"{path}: cannot be written ({error.strerror}).") from error
    finally:
        unnamed.unlink()
    return identity


def enrol(path: Path, keys: Mapping[str, bytes]) -> None:
    """Add devices to a register, which is made when there is none.

    Args:
        path: the register.
        keys: public keys (32 bytes) by device.

    Raises:
        FedspkError: the register has another key for a device, or cannot be read or written.
    """
    known = DeviceRegister.load(path).keys if path.exists() else {}
    for device, key in keys.items():
        if known.get(device, key) != key:
            raise FedspkError(
                f"{path}: has another key for {device}; remove the device there if it really has a "
                "new identity."
            )
    DeviceRegister({**known, **keys}).save(path)


def enrol_simulated_fleet(folder: Path, devices: Iterable[str]) -> Path:
    """Give every device that has none an identity and all of them a register; return its path.

    Args:
        folder: of the devices' descriptions; several processes may do this at the same time.
        devices: the fleet's names.
    """
    keys = {}
    for device in devices:
        path = folder / device / IDENTITY_FILE
        with contextlib.suppress(FedspkError):  # there already, perhaps since just now
            if not path.exists():
                create_identity(device, path)
        keys[device] = Identity.load(path).public
    register = folder / REGISTER_FILE
    DeviceRegister(keys).save(register)
    return register

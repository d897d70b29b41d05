"""A process of lower priority that takes a new version into use, while another one goes on serving.

Compiling and re-enrolment keep all cores busy for seconds, and PyTorch takes much memory. So a
running device starts this program for it, which gives way to whatever else wants to run and then
ends:

    python -m clients.update_process

Its standard input is one line of JSON: the device's folder, its name and its vault key; nothing of
that stands on the command line. Its standard output is one report (`fedspk.api.Report`) a line, the
last one when it is done; or else, as the last line, why it cannot: {"error": one sentence}.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from clients.secret_input import leave_no_core_dump
from clients.updater import Updater
from clients.vault import Vault
from clients.vault_key import VaultKey
from clients.versions import read_versions
from fedspk import __version__
from fedspk.api import Report
from fedspk.errors import FedspkError

if TYPE_CHECKING:
    from collections.abc import Iterator

_NICE = 5  # requests come first, yet a busy machine does not starve the update


class UpdateEndedError(FedspkError):
    """The process that updates the device ended before it was done."""


class UpdateProcess:
    """Starts that process and hears what it says.

    Args:
        vault: the device's.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._child: subprocess.Popen[bytes] | None = None
        self._is_stopped = False
        self._lock = threading.Lock()

    def run(self, tell: Callable[[Report], None]) -> Report:
        """Take a new version into use, if there is one; tell each report and return the last.

        Raises:
            UpdateEndedError: the process was killed, or met a fault.
            FedspkError: it cannot be started, or `stop` was called.
        """
        key = self._vault.vault_key
        secret = {"home": str(self._vault.home), "device": key.device, "key": key.key.hex()}
        last: Report | None = None
        fault: str | None = None
        for line in self._lines(json.dumps(secret).encode()):
            fault = _fault(line)
            if fault is None:
                last = Report.from_json(line)
                tell(last)
        if fault is not None:
            raise UpdateEndedError(fault)
        if self._is_stopped:
            raise FedspkError("the device is told to end; its update begins anew.")
        if last is None or last.state == "updating":
            raise UpdateEndedError(
                "the process that updates the device was killed before it was done; see that the "
                "machine has memory enough. It is tried again."
            )
        return last

    def stop(self) -> None:
        """End the process, if one runs, and let no other start; the version in use stays."""
        with self._lock:
            self._is_stopped = True
            if self._child is not None:
                self._child.kill()  # safe at any moment, and quicker than an import

    def _lines(self, secret: bytes) -> Iterator[bytes]:
        with self._lock:
            if self._is_stopped:
                return
            try:
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "clients.update_process"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            except OSError as error:
                raise FedspkError(
                    f"the process that updates the device cannot start ({error.strerror})."
                ) from error
        with self._child as child:
            assert child.stdin is not None
            assert child.stdout is not None
            with suppress(BrokenPipeError):
                child.stdin.write(secret + b"\n")
                child.stdin.close()
            yield from child.stdout


def main() -> None:
    """Be that process."""
    os.nice(_NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent stops
    leave_no_core_dump()
    secret = json.loads(sys.stdin.buffer.readline())
    vault = Vault(Path(secret["home"]), VaultKey(secret["device"], bytes.fromhex(secret["key"])))
    current = read_versions(vault).current
    updating = Report(
        version=current.number,
        content_hash=current.model_hash,
        state="updating",
        client=__version__,
    )
    _tell(updating)
    try:
        _tell(Updater(vault).check().report())
    except FedspkError as error:
        _say(json.dumps({"error": str(error)}).encode())


def _tell(report: Report) -> None:
    _say(report.to_json())


def _say(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def _fault(line: bytes) -> str | None:
    """Return the sentence of a line that says why the process cannot go on; None of a report."""
    said = json.loads(line)
    return str(said["error"]) if "error" in said else None


if __name__ == "__main__":
    main()

"""A PostgreSQL server of one's own, in a temporary folder, gone with the block."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

PASSWORD = "not-a-secret"
PROGRAMS = shutil.which("postgres"), shutil.which("initdb")


@contextmanager
def postgres() -> Iterator[str]:
    """Start a server on loopback and yield a URL without a database: `postgresql://.../`."""
    with tempfile.TemporaryDirectory() as folder:
        data, secret = Path(folder) / "data", Path(folder) / "password"
        secret.write_text(PASSWORD)
        user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        if user:
            for path in (Path(folder), secret):
                shutil.chown(path, user)
        setup = ["initdb", "-D", data, "-U", "fedspk", "--pwfile", secret, "-A", "scram-sha-256"]
        quick = ["--no-sync", "--no-instructions", "-E", "UTF8", "--locale=C"]
        subprocess.run([*setup, *quick], user=user, check=True, capture_output=True)
        port = _free_port()
        run = ["postgres", "-D", data, "-p", str(port), "-k", folder, "-h", "127.0.0.1", "-F"]
        server = subprocess.Popen(
            run, user=user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            url = f"postgresql://fedspk:{PASSWORD}@127.0.0.1:{port}/"
            _wait_for(url + "postgres")
            yield url
        finally:
            server.send_signal(signal.SIGINT)  # waits for nobody
            server.wait()


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def _wait_for(url: str) -> None:
    for _ in range(200):
        try:
            psycopg.connect(url).close()
            return
        except psycopg.OperationalError:
            time.sleep(0.05)
    raise TimeoutError("PostgreSQL did not start")

"""A real browser (headless Chromium), driven through its DevTools protocol."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium")

_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-port=0",
]


class Browser:
    """One tab. `messages` are what the browser had to say against the pages: blocked content,
    failed loads."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._calls = 0
        self.messages: list[str] = []
        for domain in ("Page", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol and return its result."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters}
        self._connection.send(json.dumps(message))
        while True:
            answer = json.loads(self._connection.recv(timeout=30))
            if answer.get("method") == "Log.entryAdded":
                self.messages.append(answer["params"]["entry"]["text"])
            if answer.get("id") == self._calls:
                assert "error" not in answer, answer
                return answer["result"]

    def look(self, width: int, height: int = 800, dark: bool = False) -> None:
        """Set the window's size, in CSS pixels, and the colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str) -> None:
        """Go to a page and wait until it is there."""
        self.run("window.left = true")
        self.call("Page.navigate", url=address)
        self.wait_for("!window.left && document.readyState === 'complete'")

    def act(self, script: str) -> None:
        """Do what leads to another page, and wait until that is there."""
        self.run(f"window.left = true; {script}")
        self.wait_for("!window.left && document.readyState === 'complete'")

    def wait_for(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + 30
        while not self.run(condition):
            assert time.monotonic() < end, condition
            time.sleep(0.01)

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")


@contextmanager
def browsing() -> Iterator[Browser]:
    """Start a browser with a profile of its own, which ends with the block."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            with connect(_tab(process), max_size=None) as connection:
                yield Browser(connection)
        finally:
            process.terminate()
            process.communicate()


def _tab(process: subprocess.Popen[str]) -> str:
    """Return the address of the first tab's protocol, once the browser tells where it listens."""
    assert process.stderr is not None
    line = next(line for line in process.stderr if "DevTools listening on" in line)
    host = line.split("//")[1].split("/")[0]
    with urllib.request.urlopen(f"http://{host}/json") as answer:
        tabs = json.load(answer)
    return next(str(tab["webSocketDebuggerUrl"]) for tab in tabs if tab["type"] == "page")

"""Signed app bundles: devices that run only code which the release key has signed.

A SuperLink hands its SuperNodes whatever app it is given. A SuperNode started with
`--trusted-entities` runs a bundle only with an Ed25519 signature by a key of its own list, and a
SuperLink passes signatures on only for bundles that it fetches from Flower Hub. Here is the one
exchange of that hub which a SuperLink needs (Flower 1.41: `POST /hub/fetch-fab`), for a folder of
bundles on the SuperLink's own machine. The signing key need never be on that machine.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from fedspk.errors import FedspkError
from fedspk.files import read_json, write_json

HOST = "127.0.0.1"

_SIGNATURES = ".signatures.json"
_APP = re.compile(r"@([\w.-]+)/([\w.-]+)", re.ASCII)
_VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)
_LONGEST_REQUEST = 4096


def sign_bundle(bundle: Path, key: Path, signer: str) -> Path:
    """Add a signature to those of a bundle, which lie in a file beside it; return that file.

    What is signed is the time (8 bytes, big-endian seconds since 1970) and the bundle's SHA-256.

    Args:
        bundle: what `flwr build` made.
        key: an Ed25519 key without a password, as `ssh-keygen -t ed25519 -N ''` makes it.
        signer: the key's name in the devices' lists of trusted entities.

    Raises:
        FedspkError: the bundle, the key or the signatures so far cannot be read, or the key is of
            another kind.
    """
    secret = _signing_key(key)
    signed_at = int(time.time())
    digest = hashlib.sha256(_read(bundle)).digest()
    signature = secret.sign(signed_at.to_bytes(8, "big") + digest)
    file = _signature_file(bundle)
    others = _signatures(bundle)
    made = {
        "public_key_id": signer,
        "signed_at": signed_at,
        "signature": base64.urlsafe_b64encode(signature).decode(),
    }
    write_json(file, [*(each for each in others if each["public_key_id"] != signer), made])
    return file


class BundleServer(ThreadingHTTPServer):
    """Answers a SuperLink of this machine that asks for an app: its bundle, its signatures.

    Args:
        folder: bundles under the names that `flwr build` gave them.
        port: where to listen; 0 finds one.
    """

    daemon_threads = True

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        super().__init__((HOST, port), _Handler)

    @property
    def address(self) -> str:
        """What the SuperLink's FLWR_SUPERGRID_API_URL must be."""
        return f"http://{HOST}:{self.server_port}"

    def answer(self, app: str, version: str) -> dict[str, Any]:
        """Return where the bundle of an app is and who has signed it.

        Args:
            app: `@publisher/name`.
            version: `1.2.3`.

        Raises:
            FedspkError: there is not exactly one such bundle, or its signatures are broken.
        """
        named = _APP.fullmatch(app)
        if not named or not _VERSION.fullmatch(version):
            raise FedspkError("Name the app and its version: @publisher/name==1.2.3.")
        pattern = f"{named[1]}.{named[2]}.{version.replace('.', '-')}.*.fab"
        found = sorted(self.folder.glob(pattern))
        if len(found) != 1:
            raise FedspkError(f"{self.folder} has {len(found)} bundles {pattern}; keep one there.")
        url = f"{self.address}/{found[0].name}"
        return {"fab_url": url, "verifications": _signatures(found[0])}


class _Handler(BaseHTTPRequestHandler):
    server: BundleServer

    def do_POST(self) -> None:
        try:
            length = max(0, int(self.headers.get("Content-Length") or 0))
            request = json.loads(self.rfile.read(min(length, _LONGEST_REQUEST)))
            answer = self.server.answer(str(request["app_id"]), str(request["app_version"]))
        except FedspkError as error:
            self._reply(HTTPStatus.NOT_FOUND, json.dumps({"detail": str(error)}).encode())
        except (ValueError, KeyError, TypeError, RecursionError):
            self._reply(HTTPStatus.BAD_REQUEST, b"{}")
        else:
            self._reply(HTTPStatus.OK, json.dumps(answer).encode())

    def do_GET(self) -> None:
        bundles = {f"/{path.name}": path for path in self.server.folder.glob("*.fab")}
        if self.path in bundles:
            self._reply(HTTPStatus.OK, _read(bundles[self.path]))
        else:
            self._reply(HTTPStatus.NOT_FOUND, b"")

    def _reply(self, status: HTTPStatus, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _signature_file(bundle: Path) -> Path:
    return bundle.with_name(bundle.name + _SIGNATURES)


def _signatures(bundle: Path) -> list[dict[str, Any]]:
    """Return the signatures that a bundle has; FedspkError if their file is broken."""
    file = _signature_file(bundle)
    made = read_json(file) if file.exists() else []
    sound = isinstance(made, list) and all(
        isinstance(each, dict) and "public_key_id" in each for each in made
    )
    if not sound:
        raise FedspkError(f"{file}: is not a list of signatures; remove it and sign again.")
    return made


def _signing_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_ssh_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FedspkError(f"{path}: is not an OpenSSH private key without a password.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise FedspkError(f"{path}: is not an Ed25519 key; make one with ssh-keygen -t ed25519.")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FedspkError(f"{path}: cannot be read ({error.strerror}).") from error

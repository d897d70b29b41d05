from __future__ import annotations

import json
import threading
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from flwr.supercore.fab import Fab
from flwr.supernode.start_client_internal import _verify_fab

from aggregator.bundles import BundleServer, sign_bundle
from fedspk.cli import run
from fedspk.errors import FedspkError

_NAME = "fedspk.fedspk.0-1-0.1a2b3c4d.fab"
_ASKED = {"app_id": "@fedspk/fedspk", "app_version": "0.1.0", "flwr_version": "1.41.0"}


@pytest.fixture
def bundle(tmp_path):
    path = tmp_path / "bundles" / _NAME
    path.parent.mkdir()
    path.write_bytes(b"the code of a release")
    return path


@pytest.fixture
def server(bundle):
    with BundleServer(bundle.parent, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_supernode_accepts_what_it_fetches_and_nothing_else(bundle, server, tmp_path):
    sign_bundle(bundle, _key(tmp_path / "release"), "fpk_release")
    answer = json.loads(_post(server, _ASKED))
    content = urlopen(answer["fab_url"]).read()
    signatures = {each.pop("public_key_id"): json.dumps(each) for each in answer["verifications"]}
    trusted = {"fpk_release": (tmp_path / "release.pub").read_text()}
    assert _verify_fab(Fab("", content, signatures), trusted)
    assert not _verify_fab(Fab("", content + b"!", signatures), trusted)
    _key(tmp_path / "other")
    stranger = {"fpk_release": (tmp_path / "other.pub").read_text()}
    assert not _verify_fab(Fab("", content, signatures), stranger)


def test_signatures_add_up_and_a_signer_has_one(bundle, server, tmp_path):
    for signer in ("fpk_release", "fpk_review", "fpk_release"):
        sign_bundle(bundle, _key(tmp_path / signer), signer)
    answer = json.loads(_post(server, _ASKED))
    signers = [each["public_key_id"] for each in answer["verifications"]]
    assert signers == ["fpk_review", "fpk_release"]


def test_a_key_of_another_kind_is_refused(bundle, tmp_path):
    key = _key(tmp_path / "node", ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(FedspkError, match="is not an Ed25519 key"):
        sign_bundle(bundle, key, "fpk_release")
    with pytest.raises(FedspkError, match="is not an OpenSSH private key"):
        sign_bundle(bundle, bundle, "fpk_release")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"app_version": "0.2.0"}, "has 0 bundles"),
        ({"app_version": None}, "Name the app and its version"),
        ({"app_version": "0.1.*"}, "Name the app and its version"),
        ({"app_id": "@fedspk/../*"}, "Name the app and its version"),
    ],
)
def test_what_is_not_there_is_said(server, changes, sentence):
    with pytest.raises(HTTPError) as refusal:
        _post(server, _ASKED | changes)
    assert refusal.value.code == 404
    assert sentence in json.loads(refusal.value.read())["detail"]


def test_two_bundles_of_one_version_are_a_question_not_a_guess(bundle, server):
    bundle.with_name(_NAME.replace("1a2b", "5e6f")).write_bytes(b"other code")
    with pytest.raises(HTTPError) as refusal:
        _post(server, _ASKED)
    assert "has 2 bundles" in json.loads(refusal.value.read())["detail"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", b"{" * 9000])
def test_nonsense_is_a_bad_request(server, body):
    with pytest.raises(HTTPError) as refusal:
        urlopen(Request(f"{server.address}/hub/fetch-fab", data=body))
    assert refusal.value.code == 400


@pytest.mark.parametrize("path", ["/../release", f"/{_NAME}.signatures.json", "/"])
def test_only_bundles_are_served(bundle, server, tmp_path, path):
    sign_bundle(bundle, _key(tmp_path / "release"), "fpk_release")
    with pytest.raises(HTTPError) as refusal:
        urlopen(f"{server.address}{path}")
    assert refusal.value.code == 404


def _post(server, request):
    return urlopen(Request(f"{server.address}/hub/fetch-fab", json.dumps(request).encode())).read()


def _key(path, key=None):
    key = key or ed25519.Ed25519PrivateKey.generate()
    openssh = serialization.PrivateFormat.OpenSSH
    encoding = serialization.Encoding
    path.write_bytes(key.private_bytes(encoding.PEM, openssh, serialization.NoEncryption()))
    public = key.public_key().public_bytes(encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    path.with_suffix(".pub").write_bytes(public)
    return path


def test_the_command_signs(bundle, tmp_path, capsys):
    key = _key(tmp_path / "release")
    command = ["bundle", "sign", str(bundle), "--key", str(key), "--signer", "fpk_release"]
    assert run(command) == 0
    assert capsys.readouterr().out.strip() == f"{bundle}.signatures.json"

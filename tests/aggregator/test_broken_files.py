"""The aggregator's own files, damaged or never its own, are one sentence."""

from __future__ import annotations

import json
import threading
from http.client import HTTPConnection

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from nonsense import damaged, nested

from aggregator.bundles import HOST, BundleServer, sign_bundle
from aggregator.checkpoint import FederationState, load_checkpoint, save_checkpoint
from aggregator.rounds import Best
from fedspk.errors import FedspkError
from fedspk.rounds import RunConfig

_BUNDLE = "fedspk.fedspk.0-1-0.1a2b3c4d.fab"
_ASKED = {"app_id": "@fedspk/fedspk", "app_version": "0.1.0"}
_DEEP = b"[" * 4000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a signed bundle and the key that has signed it."""
    folder = tmp_path_factory.mktemp("bundles")
    (folder / _BUNDLE).write_bytes(b"the code of a release")
    (folder / "key").write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    sign_bundle(folder / _BUNDLE, folder / "key", "fpk_release")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with BundleServer(folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_broken_signatures_are_one_sentence_to_who_signs_and_to_who_asks(folder, server, data):
    file = folder / f"{_BUNDLE}.signatures.json"
    whole = file.read_bytes()
    broken = data.draw(damaged(whole) | nested().map(lambda value: json.dumps(value).encode()))
    try:
        file.write_bytes(broken)
        try:
            found = server.answer(_ASKED["app_id"], _ASKED["app_version"])["verifications"]
        except FedspkError as error:
            with pytest.raises(FedspkError) as refusal:
                sign_bundle(folder / _BUNDLE, folder / "key", "fpk_release")
            assert str(refusal.value) == str(error)
        else:
            assert all("public_key_id" in each for each in found)
            sign_bundle(folder / _BUNDLE, folder / "key", "fpk_release")
    finally:
        file.write_bytes(whole)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_broken_key_is_one_sentence(folder, data):
    broken = folder / "broken"
    broken.write_bytes(data.draw(damaged((folder / "key").read_bytes())))
    try:
        sign_bundle(folder / _BUNDLE, broken, "fpk_release")
    except FedspkError as error:
        assert str(error).startswith(str(broken))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_whatever_is_asked_of_the_bundle_server_it_answers(server, data):
    asked = json.dumps(_ASKED).encode()
    body = data.draw(damaged(asked) | nested().map(lambda value: json.dumps(value).encode()))
    assert _status(server, body, str(len(body))) in {200, 400, 404}


def test_what_is_nested_too_deep_is_refused_like_other_nonsense(folder, server):
    assert _status(server, _DEEP, str(len(_DEEP))) == 400
    bundle = folder / _BUNDLE.replace("0-1-0", "0-2-0")
    bundle.write_bytes(b"the code of another release")
    bundle.with_name(f"{bundle.name}.signatures.json").write_bytes(_DEEP)
    with pytest.raises(FedspkError, match="is not valid JSON"):
        server.answer("@fedspk/fedspk", "0.2.0")


@pytest.mark.parametrize("length", ["-1", "many", "", "0"])
def test_a_request_without_a_length_is_a_bad_one(server, length):
    assert _status(server, b"", length) == 400


def _status(server, body, length):
    connection = HTTPConnection(HOST, server.server_port, timeout=10)
    connection.request("POST", "/hub/fetch-fab", body, {"Content-Length": length})
    status = connection.getresponse().status
    connection.close()
    return status


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_broken_checkpoint_is_one_sentence(tmp_path_factory, data):
    folder, config = tmp_path_factory.getbasetemp() / "checkpoint", RunConfig()
    state = FederationState(2, "a" * 64, "b" * 64, Best(1, 0.5), "c" * 64)
    save_checkpoint(folder, state, config)
    assert load_checkpoint(folder, config, "a" * 64) == state
    file = folder / "checkpoint.json"
    whole = file.read_bytes()
    changes = data.draw(st.dictionaries(st.sampled_from(sorted(json.loads(whole))), nested()))
    for content in (
        data.draw(damaged(whole)),
        json.dumps(json.loads(whole) | changes).encode(),
        json.dumps(data.draw(nested())).encode(),
    ):
        file.write_bytes(content)
        try:
            found = load_checkpoint(folder, config, "a" * 64)
        except FedspkError as error:
            assert str(error).startswith(str(file))
        else:
            assert isinstance(found, FederationState)

"""Keys: published vectors, weak and altered input refused, files that only their owner reads."""

from __future__ import annotations

import hashlib
import hmac
import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fedspk.errors import FedspkError
from fedspk.secagg.errors import MessageError
from fedspk.secagg.keys import (
    SEAL_BYTES,
    AgreementKey,
    DeviceRegister,
    Identity,
    check_public_key,
    derive_key,
    seal,
    unseal,
)

SECRETS = st.binary(min_size=32, max_size=32)
LABELS = st.text("abcdefgh ", max_size=8)
INDICES = st.lists(st.integers(0, 2**32 - 1), max_size=3)

# The points of order 1, 2, 4 and 8 of Curve25519 and its twist, and their other encodings below
# 2^255 (https://cr.yp.to/ecdh.html#validate).
LOW_ORDER = [
    (0).to_bytes(32, "little"),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
]


def _hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 by the letter."""
    extracted = hmac.digest(salt or bytes(32), secret, hashlib.sha256)
    block, output = b"", b""
    for count in range(1, -(-length // 32) + 1):
        block = hmac.digest(extracted, block + info + bytes([count]), hashlib.sha256)
        output += block
    return output[:length]


@pytest.mark.parametrize(
    ("secret", "salt", "info", "expected"),
    [
        (
            b"\x0b" * 22,
            bytes(range(13)),
            bytes(range(0xF0, 0xFA)),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            bytes(range(0x50)),
            bytes(range(0x60, 0xB0)),
            bytes(range(0xB0, 0x100)),
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"
            "59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71"
            "cc30c58179ec3e87c14c01d5c1f3434f1d87",
        ),
        (
            b"\x0b" * 22,
            b"",
            b"",
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
)
def test_reference_hkdf_gives_the_vectors_of_rfc_5869(
    secret: bytes, salt: bytes, info: bytes, expected: str
) -> None:
    assert _hkdf(secret, salt, info, len(expected) // 2).hex() == expected


def test_derived_key_is_hkdf_of_the_documented_info() -> None:
    secret, context = bytes(range(32)), bytes(range(32, 64))
    info = b"fedspk/1 \x04mask\x00\x00\x00\x03\x00\x01\x00\x00"
    assert derive_key(secret, context, "mask", 3, 65536) == _hkdf(secret, context, info, 32)


@given(SECRETS, SECRETS, LABELS, INDICES, SECRETS, SECRETS, LABELS, INDICES)
def test_derived_keys_are_equal_only_for_equal_arguments(
    secret: bytes,
    context: bytes,
    label: str,
    indices: list[int],
    other_secret: bytes,
    other_context: bytes,
    other_label: str,
    other_indices: list[int],
) -> None:
    arguments = (secret, context, label, indices)
    others = (other_secret, other_context, other_label, other_indices)
    same = derive_key(secret, context, label, *indices) == derive_key(
        other_secret, other_context, other_label, *other_indices
    )
    assert same == (arguments == others)


def test_label_and_indices_do_not_run_into_each_other() -> None:
    secret, context = bytes(32), bytes(32)
    assert derive_key(secret, context, "a", 0x62626262) != derive_key(secret, context, "abbbb")


def test_agreement_gives_the_vectors_of_rfc_7748() -> None:
    alice = AgreementKey(
        bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    )
    bob = AgreementKey(
        bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    )
    secret = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert alice.public.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert bob.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    assert alice.agree(bob.public).hex() == bob.agree(alice.public).hex() == secret


@pytest.mark.parametrize(
    ("scalar", "point", "expected"),
    [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ],
)
def test_agreement_multiplies_as_in_rfc_7748(scalar: str, point: str, expected: str) -> None:
    assert AgreementKey(bytes.fromhex(scalar)).agree(bytes.fromhex(point)).hex() == expected


def test_fresh_keys_agree_and_differ() -> None:
    one, other = AgreementKey.generate(), AgreementKey.generate()
    assert one.agree(other.public) == other.agree(one.public)
    assert one.private != other.private


@pytest.mark.parametrize("high_bit", [0, 128])
@pytest.mark.parametrize("point", LOW_ORDER, ids=bytes.hex)
def test_points_of_low_order_are_refused(point: bytes, high_bit: int) -> None:
    # X25519 ignores the highest bit of a point.
    altered = point[:-1] + bytes([point[-1] | high_bit])
    with pytest.raises(MessageError, match="low order"):
        AgreementKey.generate().agree(altered)
    with pytest.raises(MessageError, match="low order"):
        check_public_key(altered)


@given(st.binary(max_size=64).filter(lambda peer: len(peer) != 32))
def test_public_keys_of_another_length_are_refused(peer: bytes) -> None:
    with pytest.raises(MessageError):
        AgreementKey.generate().agree(peer)
    with pytest.raises(MessageError):
        check_public_key(peer)


NEAR_THE_PRIME = st.integers(2**255 - 40, 2**255 + 40).map(lambda u: u.to_bytes(32, "little"))


@given(SECRETS | NEAR_THE_PRIME)
def test_accepted_public_keys_are_those_that_agree(peer: bytes) -> None:
    accepted = True
    try:
        check_public_key(peer)
    except MessageError:
        accepted = False
    try:
        AgreementKey.generate().agree(peer)
        assert accepted
    except MessageError:
        assert not accepted


@pytest.mark.parametrize("length", [0, 31, 33])
def test_private_keys_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(MessageError):
        AgreementKey(bytes(length))


def test_private_key_is_not_in_the_representation() -> None:
    key = AgreementKey.generate()
    assert repr(key.private) not in repr(key)
    assert key.private.hex() not in repr(key)


@given(SECRETS, st.binary(max_size=200), st.binary(max_size=50))
def test_sealed_boxes_open_with_the_same_key_and_data(
    key: bytes, content: bytes, associated: bytes
) -> None:
    box = seal(key, content, associated)
    assert len(box) == len(content) + SEAL_BYTES
    assert unseal(key, box, associated) == content
    assert seal(key, content, associated) != box


@given(st.data())
def test_altered_boxes_do_not_open(data: st.DataObject) -> None:
    key, associated = bytes(32), b"associated"
    box = bytearray(seal(key, b"content", associated))
    box[data.draw(st.integers(0, len(box) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(MessageError):
        unseal(key, bytes(box), associated)


def test_boxes_do_not_open_with_another_key_or_other_data() -> None:
    box = seal(bytes(32), b"content", b"associated")
    with pytest.raises(MessageError):
        unseal(b"\x01" + bytes(31), box, b"associated")
    with pytest.raises(MessageError):
        unseal(bytes(32), box, b"associates")


@given(st.binary(max_size=100))
def test_arbitrary_bytes_do_not_open(box: bytes) -> None:
    with pytest.raises(MessageError):
        unseal(bytes(32), box, b"")


@pytest.mark.parametrize(
    ("private", "public", "message", "signature"),
    [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
            "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ),
    ],
)
def test_signatures_are_those_of_rfc_8032(
    private: str, public: str, message: str, signature: str
) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private))
    identity = Identity("device", key)
    assert identity.public.hex() == public
    assert identity.sign(bytes.fromhex(message)).hex() == signature
    register = DeviceRegister({"device": bytes.fromhex(public)})
    register.verify("device", bytes.fromhex(message), bytes.fromhex(signature))


def test_register_verifies_each_device_by_its_own_key() -> None:
    one, other = Identity.generate("one"), Identity.generate("other")
    register = DeviceRegister({"one": one.public, "other": other.public})
    register.verify("one", b"message", one.sign(b"message"))
    assert "one" in register
    assert "third" not in register
    for device, message, signature in [
        ("other", b"message", one.sign(b"message")),
        ("one", b"massage", one.sign(b"message")),
        ("third", b"message", one.sign(b"message")),
        ("one", b"message", b""),
        ("one", b"message", bytes(64)),
    ]:
        with pytest.raises(MessageError):
            register.verify(device, message, signature)


@given(st.binary(max_size=80))
def test_arbitrary_signatures_do_not_verify(signature: bytes) -> None:
    register = DeviceRegister({"device": Identity.generate("device").public})
    with pytest.raises(MessageError):
        register.verify("device", b"message", signature)


@pytest.mark.parametrize("name", ["", "a/b", "a b", "é", "a" * 65, "a\n", "a\x00"])
def test_other_names_than_device_names_are_refused(name: str) -> None:
    with pytest.raises(MessageError, match="not a device name"):
        Identity.generate(name)
    with pytest.raises(MessageError, match="not a device name"):
        DeviceRegister({name: bytes(32)})


def test_register_refuses_keys_of_another_length() -> None:
    with pytest.raises(MessageError, match="32 bytes"):
        DeviceRegister({"device": bytes(31)})


def test_identity_survives_its_file_and_only_the_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    identity = Identity.generate("kitchen-1")
    identity.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = Identity.load(path)
    assert loaded.device == "kitchen-1"
    assert loaded.public == identity.public
    assert loaded.sign(b"message") == identity.sign(b"message")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o610])
def test_identity_open_to_others_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.json"
    Identity.generate("device").save(path)
    path.chmod(mode)
    with pytest.raises(FedspkError, match=f"chmod 600 {path}"):
        Identity.load(path)


def _pem(encoded: bytes) -> str:
    return json.dumps({"format": 1, "device": "device", "private_key": encoded.decode()})


BROKEN_IDENTITIES = {
    "empty": "",
    "not-json": "{",
    "another-format": json.dumps({"format": 2, "device": "device", "private_key": ""}),
    "no-key": json.dumps({"format": 1, "device": "device"}),
    "extra-field": json.dumps({"format": 1, "device": "d", "private_key": "", "x": 1}),
    "not-pem": json.dumps({"format": 1, "device": "device", "private_key": "secret"}),
    "another-kind-of-key": _pem(
        X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    ),
    "encrypted": _pem(
        Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
        )
    ),
    "bad-name": _pem(
        Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
    ).replace('"device": "device"', '"device": "a/b"'),
}


@pytest.mark.parametrize("content", BROKEN_IDENTITIES.values(), ids=BROKEN_IDENTITIES)
def test_broken_identity_is_one_sentence_that_names_the_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "identity.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(FedspkError, match=r"identity\.json: is not an identity"):
        Identity.load(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "missing.json"
    with pytest.raises(FedspkError, match=r"missing\.json: cannot be read"):
        Identity.load(path)
    with pytest.raises(FedspkError, match=r"missing\.json: cannot be read"):
        DeviceRegister.load(path)


def test_register_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "register.json"
    identities = [Identity.generate(f"device-{index}") for index in range(3)]
    DeviceRegister({identity.device: identity.public for identity in identities}).save(path)
    register = DeviceRegister.load(path)
    for identity in identities:
        register.verify(identity.device, b"message", identity.sign(b"message"))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"format": 1}',
        '{"format": 2, "devices": {}}',
        '{"format": 1, "devices": {"a": "xy"}}',
        '{"format": 1, "devices": {"a": "00"}}',
        json.dumps({"format": 1, "devices": {"a b": "00" * 32}}),
    ],
)
def test_broken_register_is_one_sentence_that_names_the_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "register.json"
    path.write_text(content)
    with pytest.raises(FedspkError, match=r"register\.json: is not a device register"):
        DeviceRegister.load(path)


@settings(max_examples=200)
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_arbitrary_files_are_refused_as_such(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "arbitrary.json"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(FedspkError):
        Identity.load(path)
    with pytest.raises(FedspkError):
        DeviceRegister.load(path)

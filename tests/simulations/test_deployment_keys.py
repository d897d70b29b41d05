from __future__ import annotations

import contextlib
import ipaddress
import ssl
import stat

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

from simulations.deployment_keys import make_certificates, make_node_key


def test_the_server_certificate_is_the_authoritys_and_names_this_machine(tmp_path):
    certificate, key = make_certificates(tmp_path)
    root = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    server = x509.load_pem_x509_certificate(certificate.read_bytes())
    server.verify_directly_issued_by(root)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1")]
    secret = load_pem_private_key(key.read_bytes(), password=None)
    assert secret.public_key() == server.public_key()


def test_a_strict_client_accepts_the_server_certificate(tmp_path):
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*make_certificates(tmp_path))
    client = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(ours, theirs, server_hostname="127.0.0.1"),
        server.wrap_bio(theirs, ours, server_side=True),
    ]
    for end in ends * 2:
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    assert ends[0].version() == "TLSv1.3"


def test_a_node_key_is_an_openssh_key_on_p384(tmp_path):
    public = make_node_key(tmp_path / "kitchen.left")
    assert public.name == "kitchen.left.pub"
    secret = load_ssh_private_key((tmp_path / "kitchen.left").read_bytes(), password=None)
    assert isinstance(secret, ec.EllipticCurvePrivateKey)
    assert secret.curve.name == "secp384r1"
    assert load_ssh_public_key(public.read_bytes()) == secret.public_key()


def test_private_keys_are_their_owners_only(tmp_path):
    _, key = make_certificates(tmp_path)
    make_node_key(tmp_path / "kitchen")
    for each in (key, tmp_path / "kitchen"):
        assert stat.S_IMODE(each.stat().st_mode) == 0o600

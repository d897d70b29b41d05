"""The keys of a deployment on this machine: a throw-away authority's, and OpenSSH key pairs."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import SSHPrivateKeyTypes
from cryptography.x509.oid import NameOID

from fedspk.files import write_bytes

_SECRET = 0o600
_SIGNS_CERTIFICATES = x509.KeyUsage(
    key_cert_sign=True,
    crl_sign=True,
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)


def make_certificates(folder: Path, days: int = 30) -> tuple[Path, Path]:
    """Write a throw-away authority's `ca.crt` and a server certificate for this machine.

    Returns:
        The server's certificate and its private key (mode 0600); the authority's key is forgotten.
    """
    now = datetime.now(UTC)
    authority_key, server_key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    authority = _common_name("fedspk throw-away authority")
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())

    def builder(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(issuer_id, False)
        )

    root = (
        builder(authority, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_SIGNS_CERTIFICATES, critical=True)
    )
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    server = (
        builder(_common_name("localhost"), server_key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    for name, made in (("ca.crt", root), ("server.pem", server)):
        signed = made.sign(authority_key, hashes.SHA384())
        write_bytes(folder / name, signed.public_bytes(serialization.Encoding.PEM))
    secret = server_key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_bytes(folder / "server.key", secret, _SECRET)
    return folder / "server.pem", folder / "server.key"


def make_node_key(path: Path) -> Path:
    """Write a SuperNode's key pair as `ssh-keygen -t ecdsa -b 384` does; return the public file."""
    return write_key_pair(path, ec.generate_private_key(ec.SECP384R1()))


def write_key_pair(path: Path, key: SSHPrivateKeyTypes) -> Path:
    """Write a private key for OpenSSH (mode 0600) and its public half beside it; return the latter.

    Args:
        path: of the private key; the public one has `.pub` at the end.
        key: of any kind that OpenSSH knows.
    """
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    write_bytes(path, secret, _SECRET)
    public_path = path.with_name(f"{path.name}.pub")
    write_bytes(public_path, public + b"\n")
    return public_path


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

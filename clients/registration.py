"""Registration: the main server learns a device's public key, once, by an operator's token."""

from __future__ import annotations

from pathlib import Path

from clients.followed import read_server, registered_with, write_registration
from clients.secret_input import Secret
from clients.server_link import ServerLink
from clients.vault import Vault
from fedspk.api import Registration, Report
from fedspk.errors import FedspkError

TOKEN = Secret("the operator's one-time token", "--token-file", "fedspk-token")


def register(vault: Vault, address: str, token: str, ca: Path | None = None) -> None:
    """Give the main server the device's public key, and note that it has it.

    A registration whose answer was lost can be repeated with the same token.

    Args:
        vault: the device's.
        address: the server's base URL.
        token: one-time token of the server's operator.
        ca: file of the certificates (PEM) to trust in place of the system's.

    Raises:
        VersionsUnreachable: the server does not answer; the token is still good.
        ServerRefusedError: the token was used, has expired or is none, or the device was revoked.
        FedspkError: the text is no token, or `ca` cannot be read.
    """
    identity = vault.identity()
    link = ServerLink(address, identity, ca)
    try:
        message = Registration(
            device=vault.device, public_key=identity.public.hex(), token=token.strip()
        )
    except ValueError:  # its text would show the token
        raise FedspkError("this is no token of `fedspk server register-device`.") from None
    link.register(message)
    with vault.writing():
        write_registration(vault, address)


def report_once(vault: Vault, report: Report) -> None:
    """Tell the main server that knows the device, if one does, what it runs.

    Raises:
        VersionsUnreachable: the server does not answer.
        ServerRefusedError: it does not take the report.
    """
    link = link_of(vault)
    if link is not None:
        link.report(report)


def link_of(vault: Vault) -> ServerLink | None:
    """Return the link to the main server that knows the device; None if none does.

    Raises:
        VaultError: a box was altered.
        FedspkError: the certificates that the device was given cannot be read.
    """
    address = registered_with(vault)
    if address is None:
        return None
    server = read_server(vault)
    ca = server.ca if server and server.address == address else None
    return ServerLink(address, vault.identity(), ca)

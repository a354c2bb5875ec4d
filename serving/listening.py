"""Where a server may listen, and with which certificate; checked before it starts.

    check_exposure(workspace, "0.0.0.0")
    check_certificate(Path("server.pem"), Path("server.key"))

Writes nothing. Under Ray Serve with HAProxy, which listens on every interface whatever host it is
given, ask about host 0.0.0.0. HAProxy there speaks plain HTTP: a certificate is for uvicorn.
"""

import ipaddress
import ssl
from pathlib import Path

from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from serving.tokens import read_tokens, tokens_path


def is_loopback(host: str) -> bool:
    """True of an address that only this machine reaches; `localhost` is such a name."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def is_loopback_name(host_header: str) -> bool:
    """True of a `Host` header (name, and a port or none) that names this machine."""
    name, separator, port = host_header.rpartition(":")
    if separator and port.isdecimal() and not (":" in name and not name.endswith("]")):
        return is_loopback(name)
    return is_loopback(host_header)


def check_exposure(workspace: Workspace, host: str) -> None:
    """InputError if others would reach a server that asks for no token."""
    if not is_loopback(host) and not read_tokens(tokens_path(workspace)):
        raise InputError(
            f"the workspace has no access token, so whoever reaches {host} could rank, write "
            "events and read users' histories; run `crescendo token create --name NAME --scope "
            "rank` first, or serve on --host 127.0.0.1"
        )


def check_certificate(certificate: Path | None, key: Path | None) -> None:
    """InputError unless both are files that fit each other, or both are None."""
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        given, missing = ("key", "certificate") if certificate is None else ("certificate", "key")
        raise InputError(f"a {given} was given without a {missing}; TLS wants both")
    for what, path in (("certificate", certificate), ("key", key)):
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            raise InputError(f"{what} {path} cannot be read: {error.strerror}") from error
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # A key with a passphrase would ask for it on the terminal, and hang a server.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise InputError(
            f"certificate {certificate} and key {key} are no pair that can be served "
            f"({reason}); expected two PEM files, the key without a passphrase and made for the "
            "certificate"
        ) from error

"""Where a server may listen, and with which certificate; checked before it starts.

    check_exposure(workspace, "0.0.0.0")
    check_certificate(Path("server.pem"), Path("server.key"))
    sockets = bound("127.0.0.1", 8000, "port")     # InputError where the port is taken

Writes nothing. Under Ray Serve with HAProxy, which listens on every interface whatever host it is
given, ask about host 0.0.0.0. HAProxy there speaks plain HTTP: a certificate is for uvicorn.
"""

import errno
import ipaddress
import socket
import ssl
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from serving.tokens import read_tokens, tokens_path

NOT_THIS_MACHINE = (
    "while it has no tokens this server answers to localhost and its addresses alone, not to the "
    "name in this request's Host header"
)


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


def bound(host: str, port: int, option: str) -> list[socket.socket]:
    """A socket for each address of `host`, bound and not listening yet; close them.

    Before a release is loaded: a taken port is said at once, and nobody takes it meanwhile.
    InputError names `option`, under which the port was given.
    """
    if not 1 <= port <= 65535:
        # The system would take it modulo 65,536, and the server be somewhere else.
        raise InputError(f"{option} is {port}; expected 1 to 65535")
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listener = socket.socket(family, kind, protocol)
            sockets.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                listener.bind(address)
            except OSError as error:
                # `localhost` has an IPv6 address also where the machine has no IPv6.
                if error.errno != errno.EADDRNOTAVAIL or len(found) == 1:
                    raise
                sockets.pop().close()
        if not sockets:
            raise OSError(errno.EADDRNOTAVAIL, "none of its addresses is this machine's")
    except OSError as error:
        for listener in sockets:
            listener.close()
        name = option.replace("_", "-")
        raise InputError(
            f"{host}, port {port} cannot be listened on ({error.strerror or error}); stop what "
            f"listens there, or give another --host or --{name}"
        ) from error
    return sockets


def check_free(host: str, port: int, option: str) -> None:
    """InputError unless a server that binds its own sockets could listen there now."""
    for listener in bound(host, port, option):
        with closing(listener):
            pass


def url_of(scheme: str, host: str, port: int) -> str:
    """With the brackets that a URL wants around an IPv6 address."""
    bare = host.strip("[]")
    return f"{scheme}://[{bare}]:{port}/" if ":" in bare else f"{scheme}://{host}:{port}/"


class LoopbackNames:
    """ASGI middleware: requests whose `Host` is no name of this machine get 400.

    A page of another site may have its own name point here (DNS rebinding): without tokens the
    name is all that tells its requests apart. `rejected` is told of each: `access`, and why.
    """

    def __init__(self, app: ASGIApp, rejected: Callable[[str, str], None]) -> None:
        self._app, self._rejected = app, rejected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            if not is_loopback_name(host):
                self._rejected("access", NOT_THIS_MACHINE)
                await JSONResponse({"error": NOT_THIS_MACHINE}, 400)(scope, receive, send)
                return
        await self._app(scope, receive, send)

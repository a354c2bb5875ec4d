"""Where a server may listen without tokens, and certificates that fit, over real TLS too."""

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import httpx
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fastapi import FastAPI
from fastapi.testclient import TestClient

from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from serving.listening import (
    LoopbackNames,
    bound,
    check_certificate,
    check_exposure,
    check_free,
    is_loopback,
    is_loopback_name,
    url_of,
)
from serving.tokens import create_token, revoke_token


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("LocalHost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.7", False),
        ("::ffff:10.0.0.7", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("", False),
    ],
)
def test_loopback(host, loopback):
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("header", "loopback"),
    [
        ("localhost:8000", True),
        ("localhost", True),
        ("127.0.0.1:80", True),
        ("[::1]:8000", True),
        ("[::1]", True),
        ("::1", True),
        ("example.org:8000", False),
        ("127.0.0.1.nip.example:8000", False),
        ("10.0.0.7:8000", False),
        ("", False),
        (":8000", False),
    ],
)
def test_a_host_header_of_this_machine(header, loopback):
    assert is_loopback_name(header) is loopback


def test_without_tokens_a_server_listens_on_loopback_alone(tmp_path):
    workspace = Workspace(tmp_path)
    check_exposure(workspace, "127.0.0.1")
    with pytest.raises(InputError, match=r"reaches 0\.0\.0\.0 .*crescendo token create"):
        check_exposure(workspace, "0.0.0.0")
    create_token(workspace, name="web", scopes=["rank"])
    check_exposure(workspace, "0.0.0.0")
    revoke_token(workspace, name="web")
    with pytest.raises(InputError, match="no access token"):
        check_exposure(workspace, "0.0.0.0")


def test_an_address_is_kept_from_the_moment_it_is_bound():
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    (kept,) = bound("127.0.0.1", port, "port")
    with kept:
        assert kept.getsockname() == ("127.0.0.1", port)
        with pytest.raises(ConnectionRefusedError):  # it does not listen yet
            socket.create_connection(("127.0.0.1", port), timeout=10)
        kept.listen()
        with pytest.raises(
            InputError, match=r"port \d+ cannot be listened on \(Address already in"
        ):
            check_free("127.0.0.1", port, "port")
    check_free("127.0.0.1", port, "port")


def test_a_name_is_bound_at_each_of_its_addresses_that_this_machine_has():
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    sockets = bound("localhost", port, "port")
    assert "127.0.0.1" in [listener.getsockname()[0] for listener in sockets]
    for listener in sockets:
        listener.close()


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("127.0.0.1", 0, "grpc_port is 0; expected 1 to 65535"),
        ("127.0.0.1", 70_000, "grpc_port is 70000; expected 1 to 65535"),
        ("192.0.2.1", 8000, "192.0.2.1, port 8000 cannot be listened on .* give another --host or"),
        (
            "no.such.invalid",
            8000,
            "no.such.invalid, port 8000 cannot be listened on .* --grpc-port",
        ),
    ],
)
def test_what_cannot_be_listened_on_is_named(host, port, reason):
    with pytest.raises(InputError, match=reason):
        bound(host, port, "grpc_port")


def test_an_ipv6_address_has_brackets_in_its_url():
    assert url_of("http", "::1", 80) == url_of("http", "[::1]", 80) == "http://[::1]:80/"
    assert url_of("https", "localhost", 8000) == "https://localhost:8000/"


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000", "::1"])
def test_a_request_that_names_this_machine_passes(host):
    assert asked_by_name(host) == (200, [])


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1.nip.example:8000", ""])
def test_a_request_that_names_another_is_refused(host):
    status, rejected = asked_by_name(host)
    assert (status, [reason for reason, _ in rejected]) == (400, ["access"])


def asked_by_name(host):
    app, rejected = FastAPI(), []
    app.get("/healthz")(lambda: {"status": "ok"})
    app.add_middleware(LoopbackNames, rejected=lambda *told: rejected.append(told))
    answer = TestClient(app).get("/healthz", headers={"host": host})
    if answer.status_code != 200:
        assert answer.json() == {"error": rejected[0][1]}
    return answer.status_code, rejected


def certificate_pair(folder, name, passphrase=None):
    """A certificate of 127.0.0.1 that vouches for itself, and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    encryption = (
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption()
    )
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    return paths


def test_a_pair_that_fits_serves_https(tmp_path):
    certificate, key = certificate_pair(tmp_path, "server")
    check_certificate(certificate, key)
    app = FastAPI()
    app.get("/healthz")(lambda: {"status": "ok"})
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, ssl_certfile=certificate, ssl_keyfile=key, log_level="error", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        trust = ssl.create_default_context(cafile=certificate)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/healthz"
        assert httpx.get(url, verify=trust, timeout=30).json() == {"status": "ok"}
        with pytest.raises(httpx.HTTPError):  # plain HTTP gets no answer there
            httpx.get(url.replace("https", "http"), timeout=30)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def test_no_certificate_is_plain_http():
    check_certificate(None, None)


def test_certificates_that_cannot_be_served_are_refused(tmp_path):
    certificate, key = certificate_pair(tmp_path, "one")
    other_certificate, _ = certificate_pair(tmp_path, "two")
    _, locked_key = certificate_pair(tmp_path, "three", passphrase=b"secret")
    text = tmp_path / "text"
    text.write_text("no PEM")
    for given, reason in [
        ((certificate, None), "a certificate was given without a key"),
        ((None, key), "a key was given without a certificate"),
        ((tmp_path / "gone", key), "certificate .*gone cannot be read: No such file"),
        ((certificate, tmp_path), "key .* cannot be read: Is a directory"),
        ((text, key), "no pair that can be served"),
        ((certificate, text), "no pair that can be served"),
        ((other_certificate, key), "KEY_VALUES_MISMATCH"),
        ((tmp_path / "three.pem", locked_key), "no pair that can be served"),
    ]:
        with pytest.raises(InputError, match=reason):
            check_certificate(*given)

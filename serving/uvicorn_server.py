"""Runs the application in this process, without Ray: one replica, TLS where a certificate is given.

    crescendo serve --uvicorn --host 10.0.0.7 --certificate server.pem --key server.key
    crescendo serve --uvicorn --grpc-port 9000          # gRPC too: serving/ranking.proto

The listener is bound to the host that is given and to no other, unlike Ray's.
"""

import logging
import socket
import sys
import threading
from pathlib import Path

import uvicorn

from feature_repo.workspace import Workspace
from serving.deployment import load_app, stop_on_signal
from serving.grpc_server import GrpcOptions
from serving.listening import (
    bound,
    check_certificate,
    check_exposure,
    check_free,
    url_of,
)
from serving.releases import live_release
from serving.request_log import json_logs
from serving.shedding_protocol import shedding_protocol
from serving.tokens import read_tokens, tokens_path

GRACE_S = 10
"""Requests that are under way at the end get so long."""
MOST_CONNECTIONS = 1024
"""Beyond them 503: each costs memory and a file."""


def serve_with_uvicorn(
    workspace: Workspace,
    *,
    host: str,
    port: int,
    logged_share: float = 0.0,
    certificate: Path | None = None,
    key: Path | None = None,
    grpc_port: int | None = None,
) -> None:
    """Serves the live release until SIGINT or SIGTERM, also one that comes during the start.

    InputError for a host that others reach while the workspace has no token, for a certificate
    and key that do not fit each other, and for a port that cannot be listened on.
    """
    check_exposure(workspace, host)
    check_certificate(certificate, key)
    live_release(workspace)  # without one nothing is loaded
    stop = threading.Event()
    stop_on_signal(stop)  # uvicorn hands signals on when it has ended
    sockets = bound(host, port, "port")
    if grpc_port is not None:
        check_free(host, grpc_port, "grpc_port")  # gRPC binds its own
    json_logs()
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    grpc = None
    if grpc_port is not None:
        grpc = GrpcOptions(host=host, port=grpc_port, certificate=certificate, key=key)
    app = load_app(
        workspace,
        logged_share=logged_share,
        grpc=grpc,
        only_loopback_names=not read_tokens(tokens_path(workspace)),
    )
    http = shedding_protocol(app.state.pressure, app.state.refusals)
    if stop.is_set():
        return
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=http,
        access_log=False,
        log_config=None,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        timeout_graceful_shutdown=GRACE_S,
        limit_concurrency=MOST_CONNECTIONS,
    )
    scheme = "http" if certificate is None else "https"
    line = f"serving at {url_of(scheme, host, port)}; stop with Ctrl-C"
    _Announcing(config, line).run(sockets)


class _Announcing(uvicorn.Server):
    """Says a line once it listens."""

    def __init__(self, config: uvicorn.Config, line: str) -> None:
        super().__init__(config)
        self._line = line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._line, file=sys.stderr, flush=True)

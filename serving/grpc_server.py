"""Rankings over gRPC, beside HTTP in the same process and event loop: `serving/ranking.proto`.

    async with grpc_server(service, access, GrpcOptions(host="127.0.0.1", port=9000)) as port:
        ...

h2corn takes HTTP/2 apart, in Rust, and `serving.grpc_calls` answers. grpc's own server for asyncio
passes each call through four threads, which costs 0.2 ms more than this, as much as it takes to
send a ranking as JSON. For uvicorn: Ray Serve's HAProxy passes HTTP alone on.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import h2corn

from feature_repo.errors import InputError
from serving.access import Access
from serving.grpc_calls import MESSAGE_BYTES, RankingCalls
from serving.ranking_service import RankingService

STOP_S = 5.0
"""How long calls may go on when the server stops."""
IDLE_BODY_S = 10.0
"""A message's bytes, and an answer's, may pause for so long."""
HEADERS_BYTES = 16 * 1024
MOST_CONNECTIONS = 1024
"""As `serving.uvicorn_server` has of HTTP's."""


@dataclass(frozen=True, kw_only=True)
class GrpcOptions:
    """Where to listen; both files or none, as `serving.listening.check_certificate` wants them."""

    host: str
    port: int
    """0: a free one."""
    certificate: Path | None = None
    key: Path | None = None


@asynccontextmanager
async def grpc_server(
    service: RankingService, access: Access, options: GrpcOptions
) -> AsyncIterator[int]:
    """Serves until the block ends. Yields the port. InputError if it cannot be listened on."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"{host}:{options.port}"
    bounds = h2corn.RequestPolicy(
        path="/*",
        max_request_body_size=2 * MESSAGE_BYTES,  # the calls refuse what is above one, in words
        timeout_request_body_idle=IDLE_BODY_S,
        h2_timeout_response_stall=IDLE_BODY_S,
    )
    config = h2corn.Config(
        bind=(address,),
        certfile=options.certificate,
        keyfile=options.key,
        grpc=True,
        http1=False,
        lifespan="off",
        access_log=False,
        log_format="json",
        date_header=False,
        runtime_threads=1,
        limit_connections=MOST_CONNECTIONS,
        h2_max_header_list_size=HEADERS_BYTES,
        h2_max_header_block_size=HEADERS_BYTES,
        request_policies=(bounds,),
        timeout_graceful_shutdown=STOP_S,
    )
    server = h2corn.Server(RankingCalls(service, access), config)
    serving = asyncio.create_task(server.serve())
    try:
        await server.wait_started()
    except OSError as error:
        await asyncio.gather(serving, return_exceptions=True)
        raise InputError(f"gRPC cannot listen on {address}; give a free --grpc-port") from error
    try:
        yield int(server.addresses[0].rpartition(":")[2])
    finally:
        server.shutdown()
        await serving

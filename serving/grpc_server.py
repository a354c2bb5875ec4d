"""Rankings over gRPC, beside HTTP in the same process and event loop: `serving/ranking.proto`.

    async with grpc_server(service, access, GrpcOptions(host="127.0.0.1", port=9000)) as port:
        ...

The service, its bounds, its tokens (metadata `authorization: Bearer ...`) and its errors are those
of HTTP; the client's deadline is the ranking's. Writes nothing. The messages are made by

    pip install grpcio-tools==1.74.0
    python -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. serving/ranking.proto

(that version's work with protobuf 6 and 7). For uvicorn: Ray Serve's HAProxy passes HTTP alone on.
"""

import secrets
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog
from google.protobuf.message import DecodeError
from pydantic import ValidationError

from feature_repo.errors import InputError, StoreUnavailableError
from serving.access import Access, Refused
from serving.pressure import RETRY_AFTER_S, Overloaded
from serving.ranking_pb2 import RankRequest, RankResponse
from serving.ranking_service import Answer, RankingService
from serving.request_limits import HEADER, SANE_ID, request_id
from serving.schemas import RankRequest as Checked

SERVICE = "crescendo.v1.Ranking"
MESSAGE_BYTES = 64 * 1024
"""2,000 candidates of ten bytes, the longest that an int64 gets, are 20 KB."""
STOP_S = 5.0
"""How long calls may go on when the server stops."""
STATUSES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
}

log = structlog.get_logger()


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
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),  # else a second server would silently share the port
        ]
    )
    server.add_generic_rpc_handlers((RankingCalls(service, access).handlers(),))
    address = f"{options.host}:{options.port}"
    try:
        if options.certificate is None or options.key is None:
            port = server.add_insecure_port(address)
        else:
            pair = options.key.read_bytes(), options.certificate.read_bytes()
            port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    except RuntimeError as error:
        raise InputError(f"gRPC cannot listen on {address}; give a free --grpc-port") from error
    await server.start()
    try:
        yield port
    finally:
        await server.stop(STOP_S)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How a call ends that has no answer."""

    status: grpc.StatusCode
    reason: str
    retry_after_s: int | None = None


class RankingCalls:
    """The calls of one service."""

    def __init__(self, service: RankingService, access: Access) -> None:
        self._service, self._access = service, access

    def handlers(self) -> grpc.GenericRpcHandler:
        rank = grpc.unary_unary_rpc_method_handler(
            self._rank,  # reads the bytes itself: what cannot be read is answered like all else
            response_serializer=RankResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"Rank": rank})

    async def _rank(self, message: bytes, context: grpc.aio.ServicerContext) -> RankResponse | None:
        metadata = dict(context.invocation_metadata() or ())
        given = str(metadata.get(HEADER.decode(), ""))
        request_id.set(given if SANE_ID.fullmatch(given.encode()) else secrets.token_hex(16))
        found = await self._answer(message, metadata, context.time_remaining())
        if isinstance(found, RankResponse):
            return found
        if found.retry_after_s is not None:
            context.set_trailing_metadata((("retry-after", str(found.retry_after_s)),))
        await context.abort(found.status, found.reason)
        return None

    async def _answer(
        self, message: bytes, metadata: dict[str, str | bytes], left_s: float | None
    ) -> RankResponse | Failure:
        rejected = self._service.metrics.rejected
        try:
            authorization = str(metadata.get("authorization", ""))
            self._access.check(authorization, "rank", time.monotonic())
            request = RankRequest.FromString(message)
            checked = Checked(user_id=request.user_id, candidates=list(request.candidates))
            answer = await self._service.rank(
                checked,
                deadline_ms=None if left_s is None else 1e3 * max(left_s, 0.0),
                traceparent=str(metadata.get("traceparent", "")),
            )
            return response(request.user_id, answer)
        except Refused as error:
            rejected(error.counted)
            wait = error.header.get("Retry-After")
            return Failure(
                status=STATUSES[error.status],
                reason=str(error),
                retry_after_s=None if wait is None else int(wait),
            )
        except DecodeError:
            return Failure(
                status=grpc.StatusCode.INVALID_ARGUMENT, reason="the message is no RankRequest"
            )
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(str(part) for part in problem["loc"])
            return Failure(
                status=grpc.StatusCode.INVALID_ARGUMENT, reason=f"{field}: {problem['msg']}"
            )
        except Overloaded as error:
            return Failure(
                status=grpc.StatusCode.RESOURCE_EXHAUSTED,
                reason=f"overloaded: {error}; try again",
                retry_after_s=RETRY_AFTER_S,
            )
        except StoreUnavailableError as error:
            log.error("store unavailable", request_id=request_id.get(), problem=str(error))
            return Failure(
                status=grpc.StatusCode.UNAVAILABLE, reason="a store does not answer; try again"
            )
        except Exception as error:
            trace = "".join(traceback.format_exception(error))
            log.error("internal error", request_id=request_id.get(), trace=trace)
            self._service.metrics.failed()
            return Failure(
                status=grpc.StatusCode.INTERNAL,
                reason=f"internal error; request {request_id.get()}",
            )


def response(user_id: int, answer: Answer) -> RankResponse:
    """The message of an answer. Tracks without a score are its last ones."""
    ranking = answer.ranking
    return RankResponse(
        release_id=answer.ranker.release.release_id,
        user_id=user_id,
        track_ids=ranking.track_ids,
        scores=[score for score in ranking.scores if score is not None],
        user_missing=not ranking.user_known,
        missing_tracks=ranking.unknown_track_ids,
        degraded=answer.degraded,
    )

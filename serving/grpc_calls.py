"""The calls of `serving/ranking.proto` as an ASGI application: gRPC's frames, statuses, deadlines.

    app = RankingCalls(service, access)      # `serving.grpc_server` listens for it

A call is a POST whose body is one message behind five bytes, whether it is compressed and how long
it is; its outcome stands in the trailers (gRPC over HTTP2, in grpc's documents). The service, its
bounds, its tokens (metadata `authorization: Bearer ...`) and its errors are those of HTTP; the
client's deadline is the ranking's. Writes nothing. The messages are made by

    pip install grpcio-tools==1.74.0
    python -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. serving/ranking.proto

(that version's work with protobuf 6 and 7).
"""

import re
import secrets
import time
import traceback
from dataclasses import dataclass
from enum import IntEnum
from urllib.parse import quote

import structlog
from google.protobuf.message import DecodeError
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from feature_repo.errors import StoreUnavailableError
from serving.access import Access, Refused
from serving.pressure import RETRY_AFTER_S, Overloaded
from serving.ranking_pb2 import RankRequest, RankResponse
from serving.ranking_service import Answer, RankingService
from serving.request_limits import HEADER, SANE_ID, arrived_s, request_id
from serving.schemas import MAX_CANDIDATES
from serving.schemas import RankRequest as Checked
from serving.shedding import UnreadRefusals

METHOD = "/crescendo.v1.Ranking/Rank"
MEDIA_TYPE = b"application/grpc"
MESSAGE_BYTES = 64 * 1024
"""2,000 candidates of ten bytes, the longest that an int64 gets, are 20 KB."""
PREFIX_BYTES = 5
TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
MS_OF_UNIT = {b"H": 3.6e6, b"M": 6e4, b"S": 1e3, b"m": 1.0, b"u": 1e-3, b"n": 1e-6}
SPOKEN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
"""What a reason may hold as it is."""

log = structlog.get_logger()


class Status(IntEnum):
    """Those of gRPC's statuses that a call may end with."""

    OK = 0
    INVALID_ARGUMENT = 3
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


STATUSES = {
    401: Status.UNAUTHENTICATED,
    403: Status.PERMISSION_DENIED,
    429: Status.RESOURCE_EXHAUSTED,
}
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", MEDIA_TYPE), (b"grpc-accept-encoding", b"identity")],
    "trailers": True,
}
DONE = {"type": "http.response.trailers", "headers": [(b"grpc-status", b"%d" % Status.OK)]}


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How a call ends that has no answer."""

    status: Status
    reason: str
    retry_after_s: int | None = None


class Unreadable(Exception):
    """The body is no message that is taken."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class ClientGone(Exception):
    """Nobody waits for an answer."""


OVERLOADED = Failure(
    status=Status.RESOURCE_EXHAUSTED,
    reason="overloaded: the requests ahead of it fill its deadline; try again",
    retry_after_s=RETRY_AFTER_S,
)


class RankingCalls:
    """The calls of one service. For one event loop."""

    def __init__(self, service: RankingService, access: Access) -> None:
        self._service, self._access = service, access
        self._refusals = UnreadRefusals(service.metrics.rejected)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if scope["method"] != "POST" or not headers.get(b"content-type", b"").startswith(
            MEDIA_TYPE
        ):
            await send({"type": "http.response.start", "status": 415, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        given = headers.get(HEADER, b"")
        request_id.set(given.decode() if SANE_ID.fullmatch(given) else secrets.token_hex(16))
        arrived_s.set(time.perf_counter())
        found: bytes | Failure
        if self._service.pressure.is_hopeless():
            self._refusals.one()
            found = OVERLOADED
        else:
            with self._service.pressure.arriving():
                try:
                    found = await self._answer(scope["path"], headers, receive)
                except ClientGone:
                    return
        await send(START)
        if isinstance(found, bytes):
            await send({"type": "http.response.body", "body": found})
            await send(DONE)
            return
        ending = [
            (b"grpc-status", b"%d" % found.status),
            (b"grpc-message", quote(found.reason, safe=SPOKEN).encode()),
        ]
        if found.retry_after_s is not None:
            ending.append((b"retry-after", b"%d" % found.retry_after_s))
        await send({"type": "http.response.body", "body": b""})
        await send({"type": "http.response.trailers", "headers": ending})

    async def _answer(
        self, path: str, headers: dict[bytes, bytes], receive: Receive
    ) -> bytes | Failure:
        """The answer's frame, or why there is none."""
        try:
            if path != METHOD:
                raise Unreadable(Status.UNIMPLEMENTED, f"the only method is {METHOD}")
            authorization = headers.get(b"authorization", b"").decode("latin-1")
            self._access.check(authorization, "rank", time.monotonic())
            deadline_ms = timeout_ms(headers.get(b"grpc-timeout"))
            request = RankRequest.FromString(await one_message(receive))
            answer = await self._service.rank(
                checked(request),
                deadline_ms=deadline_ms,
                traceparent=headers.get(b"traceparent", b"").decode("latin-1"),
            )
            return frame(response(request.user_id, answer).SerializeToString())
        except Refused as error:
            self._service.rejected(error.counted, str(error))
            wait = error.header.get("Retry-After")
            return Failure(
                status=STATUSES[error.status],
                reason=str(error),
                retry_after_s=None if wait is None else int(wait),
            )
        except Unreadable as error:
            counted = "body" if error.status == Status.RESOURCE_EXHAUSTED else "form"
            self._service.rejected(counted, str(error))
            return Failure(status=error.status, reason=str(error))
        except DecodeError:
            return self._misformed("the message is no RankRequest")
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(str(part) for part in problem["loc"])
            return self._misformed(f"{field}: {problem['msg']}")
        except Overloaded as error:
            return Failure(
                status=Status.RESOURCE_EXHAUSTED,
                reason=f"overloaded: {error}; try again",
                retry_after_s=RETRY_AFTER_S,
            )
        except StoreUnavailableError as error:
            log.error("store unavailable", request_id=request_id.get(), problem=str(error))
            return Failure(status=Status.UNAVAILABLE, reason="a store does not answer; try again")
        except ClientGone:
            raise
        except Exception as error:
            trace = "".join(traceback.format_exception(error))
            log.error("internal error", request_id=request_id.get(), trace=trace)
            self._service.metrics.failed()
            return Failure(
                status=Status.INTERNAL, reason=f"internal error; request {request_id.get()}"
            )

    def _misformed(self, reason: str) -> Failure:
        self._service.rejected("form", reason)
        return Failure(status=Status.INVALID_ARGUMENT, reason=reason)


async def one_message(receive: Receive) -> bytes:
    """The message of a call that has one. Raises Unreadable and ClientGone."""
    parts, came, more = [], 0, True
    while more:
        event = await receive()
        if event["type"] != "http.request":
            raise ClientGone
        part = event.get("body", b"")
        came += len(part)
        if came > PREFIX_BYTES + MESSAGE_BYTES:
            raise Unreadable(
                Status.RESOURCE_EXHAUSTED, f"the message is larger than {MESSAGE_BYTES} bytes"
            )
        parts.append(part)
        more = event.get("more_body", False)
    body = b"".join(parts)
    if len(body) < PREFIX_BYTES or int.from_bytes(body[1:PREFIX_BYTES]) != came - PREFIX_BYTES:
        raise Unreadable(Status.INVALID_ARGUMENT, "the body is not one whole message")
    if body[0]:
        raise Unreadable(Status.UNIMPLEMENTED, "compressed messages are not taken; send identity")
    return body[PREFIX_BYTES:]


def frame(message: bytes) -> bytes:
    """A message, not compressed, as it is sent."""
    return b"\0%b%b" % (len(message).to_bytes(4), message)


def timeout_ms(stated: bytes | None) -> float | None:
    """The client's deadline, milliseconds from the call's arrival; None without one."""
    if stated is None:
        return None
    found = TIMEOUT.fullmatch(stated)
    if found is None:
        raise Unreadable(
            Status.INVALID_ARGUMENT, "grpc-timeout is not 1 to 8 digits and a unit of HMSmun"
        )
    return int(found[1]) * MS_OF_UNIT[found[2]]


def checked(request: RankRequest) -> Checked:
    """The same in the form of HTTP. ValidationError where it is out of bounds.

    Protobuf has checked every number: the model would look at five hundred of them again.
    """
    candidates = list(request.candidates)
    if 1 <= len(candidates) <= MAX_CANDIDATES:
        return Checked.model_construct(user_id=request.user_id, candidates=candidates)
    return Checked(user_id=request.user_id, candidates=candidates)


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

"""Rankings over gRPC: a real server in a thread's event loop, and gRPC's own client."""

import asyncio
import re
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from feature_repo.errors import InputError
from serving import ranking_pb2
from serving.access import Access
from serving.grpc_calls import Unreadable, checked, timeout_ms
from serving.grpc_server import GrpcOptions, grpc_server
from serving.live_releases import LiveReleases
from serving.metrics import ServingMetrics
from serving.pressure import PressureOptions
from serving.ranker import ReleaseRanker
from serving.ranking_pb2 import RankRequest, RankResponse
from serving.ranking_service import RankingService
from serving.releases import make_release
from serving.request_log import RequestLog, RequestLogOptions
from serving.schemas import MAX_CANDIDATES
from serving.schemas import RankRequest as Checked
from serving.tokens import create_token, tokens_path
from tests.trained import TRACKS

RANK = "/crescendo.v1.Ranking/Rank"
NEVER_LATE = PressureOptions(deadline_ms=60_000, read_budget_ms=60_000)


@pytest.fixture
def workspace(world):
    tokens_path(world.workspace).unlink(missing_ok=True)
    make_release(world.workspace, world.new)
    yield world.workspace
    tokens_path(world.workspace).unlink(missing_ok=True)


@contextmanager
def served(workspace, pressure=NEVER_LATE, **options):
    """The port, and the service behind it."""
    metrics = ServingMetrics()

    def load(release):
        ranker = ReleaseRanker(workspace, release)
        metrics.loaded(ranker)
        return ranker

    live = LiveReleases(workspace, load)
    live.start()
    service = RankingService(live, metrics, pressure, RequestLog(RequestLogOptions()))
    ready, stop = threading.Event(), asyncio.Event()
    found = []

    async def run():
        chosen = GrpcOptions(**{"host": "127.0.0.1", "port": 0, **options})
        async with grpc_server(service, Access(workspace), chosen) as port:
            found.append((asyncio.get_running_loop(), port))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert ready.wait(60)
    ((loop, port),) = found
    try:
        yield port, service
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        service.close()


def stub(channel):
    return channel.unary_unary(
        RANK,
        request_serializer=RankRequest.SerializeToString,
        response_deserializer=RankResponse.FromString,
    )


@contextmanager
def client(port):
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield stub(channel)


def failure(call, *given, **named):
    with pytest.raises(grpc.RpcError) as raised:
        call(*given, timeout=60, **named)
    return raised.value


def test_answers_as_the_release_ranks(workspace):
    candidates = [*range(TRACKS, 0, -1), 777, 3]
    with served(workspace) as (port, service), client(port) as rank:
        for user_id in (1, 2, 40, -5, 2**62):
            answer = rank(RankRequest(user_id=user_id, candidates=candidates), timeout=60)
            ranker = service.live.current
            expected = ranker.rank(user_id, candidates)
            assert answer.release_id == ranker.release.release_id
            assert answer.user_id == user_id
            assert list(answer.track_ids) == expected.track_ids
            assert list(answer.scores) == pytest.approx(expected.scores, abs=1e-6)
            assert answer.user_missing == (user_id not in (1, 2, 40))
            assert list(answer.missing_tracks) == [777]
            # The log of these tests ended long ago.
            assert list(answer.degraded) == ["user_stale"] * expected.user_known


def test_what_was_not_scored_follows_without_scores(workspace):
    no_time = PressureOptions(deadline_ms=1e-3, read_budget_ms=1e-3)
    with served(workspace, no_time) as (port, _), client(port) as rank:
        answer = rank(RankRequest(user_id=1, candidates=[5, 6, 7]), timeout=60)
    assert sorted(answer.track_ids) == [5, 6, 7]
    assert list(answer.scores) == []
    assert "popularity" in answer.degraded


@pytest.mark.parametrize("count", [0, 2001])
def test_the_bounds_are_those_of_http(workspace, count):
    with served(workspace) as (port, _), client(port) as rank:
        error = failure(rank, RankRequest(user_id=1, candidates=range(count)))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith("candidates: List should have at")


def test_bytes_that_are_no_message_are_refused(workspace):
    with served(workspace) as (port, _), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        rank = channel.unary_unary(RANK)
        error = failure(rank, b"\xff\xff\xff")
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == "the message is no RankRequest"
        assert failure(rank, bytes(65 * 1024)).code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_tokens_scopes_and_rates_hold(workspace):
    good = create_token(workspace, name="good", scopes=["rank"], requests_per_s=1)["token"]
    other = create_token(workspace, name="other", scopes=["write_events"])["token"]
    asked = RankRequest(user_id=1, candidates=[1])

    def bearer(token):
        return {"metadata": [("authorization", f"Bearer {token}")]}

    with served(workspace) as (port, _), client(port) as rank:
        assert failure(rank, asked).code() == grpc.StatusCode.UNAUTHENTICATED
        assert failure(rank, asked, **bearer("x")).code() == grpc.StatusCode.UNAUTHENTICATED
        assert failure(rank, asked, **bearer(other)).code() == grpc.StatusCode.PERMISSION_DENIED
        assert list(rank(asked, timeout=60, **bearer(good)).track_ids) == [1]
        calls = [rank.future(asked, timeout=60, **bearer(good)) for _ in range(200)]
        refused = [call for call in calls if call.exception() is not None]
    assert refused
    for call in refused:
        assert call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert ("retry-after", "1") in list(call.trailing_metadata())


def test_overload_is_refused_with_when_to_come_back(workspace):
    one_at_a_time = PressureOptions(deadline_ms=60_000, read_budget_ms=60_000, max_waiting=1)
    with served(workspace, one_at_a_time) as (port, _), client(port) as rank:
        asked = RankRequest(user_id=1, candidates=range(1, TRACKS + 1))
        calls = [rank.future(asked, timeout=60) for _ in range(300)]
        refused = [call for call in calls if call.exception() is not None]
    assert 0 < len(refused) < len(calls)
    for call in refused:
        assert call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert call.details().startswith("overloaded: ")
        assert ("retry-after", "1") in list(call.trailing_metadata())


def test_a_hopeless_call_is_refused_unread_and_counted(workspace):
    with served(workspace) as (port, service), client(port) as rank:
        asked = RankRequest(user_id=1, candidates=[1])
        rank(asked, timeout=60)
        service.pressure._request_s = 60.0  # so one that is here fills the deadline
        with service.pressure.arriving():
            error = failure(rank, asked)
        service.pressure._request_s = 1e-3
        assert list(rank(asked, timeout=60).track_ids) == [1]
        counted = service.metrics.registry.get_sample_value(
            "crescendo_rejections_total", {"reason": "deadline"}
        )
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ("retry-after", "1") in list(error.trailing_metadata())
    assert counted == 1


def test_calls_at_once_keep_their_own_ids_and_answers(workspace):
    with served(workspace) as (port, service), client(port) as rank:
        live, service.live = service.live, None
        named = [
            rank.future(
                RankRequest(user_id=1, candidates=[1]),
                timeout=60,
                metadata=[("x-request-id", f"call-{number}")],
            )
            for number in range(20)
        ]
        failed = [call.exception().details() for call in named]
        service.live = live
        calls = [
            rank.future(RankRequest(user_id=1, candidates=[number]), timeout=60)
            for number in range(1, 21)
        ]
        assert [list(call.result().track_ids) for call in calls] == [[n] for n in range(1, 21)]
    assert failed == [f"internal error; request call-{number}" for number in range(20)]


def test_other_methods_and_compressed_messages_are_told_from_failures(workspace):
    with served(workspace) as (port, _):
        address, zipped = f"127.0.0.1:{port}", grpc.Compression.Gzip
        with grpc.insecure_channel(address) as channel:
            error = failure(channel.unary_unary("/crescendo.v1.Ranking/Other"), b"")
            assert error.code() == grpc.StatusCode.UNIMPLEMENTED
            assert error.details() == f"the only method is {RANK}"
        with grpc.insecure_channel(address, compression=zipped) as channel:
            error = failure(stub(channel), RankRequest(user_id=1, candidates=[1] * 500))
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED
        assert error.details() == "compressed messages are not taken; send identity"


@pytest.mark.parametrize(
    ("stated", "ms"),
    [(None, None), (b"5S", 5e3), (b"250m", 250), (b"99999999u", 99999.999), (b"2M", 12e4)],
)
def test_deadlines_as_grpc_writes_them(stated, ms):
    assert timeout_ms(stated) == pytest.approx(ms)


@pytest.mark.parametrize("stated", [b"", b"5", b"5s", b"-5S", b"123456789m", b"5S "])
def test_other_deadlines_are_refused(stated):
    with pytest.raises(Unreadable, match="grpc-timeout"):
        timeout_ms(stated)


def test_a_call_is_read_as_http_reads_the_same_request():
    for candidates in ([1], [2**63 - 1, -(2**63), 3, 3], list(range(MAX_CANDIDATES))):
        given = {"user_id": -(2**63), "candidates": candidates}
        assert checked(RankRequest(**given)) == Checked.model_validate(given)


def test_an_internal_error_shows_nothing_of_itself(workspace):
    with served(workspace) as (port, service), client(port) as rank:
        live, service.live = service.live, None
        asked = RankRequest(user_id=1, candidates=[1])
        error = failure(rank, asked, metadata=[("x-request-id", "my-request")])
        service.live = live
    assert error.code() == grpc.StatusCode.INTERNAL
    assert error.details() == "internal error; request my-request"


def test_tls(workspace, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    trusted = grpc.ssl_channel_credentials(certificate.read_bytes())
    with (
        served(workspace, certificate=certificate, key=key) as (port, _),
        grpc.secure_channel(f"127.0.0.1:{port}", trusted) as channel,
    ):
        answer = stub(channel)(RankRequest(user_id=1, candidates=[1, 2]), timeout=60)
    assert sorted(answer.track_ids) == [1, 2]


def test_a_port_that_is_taken_is_named(workspace):
    with served(workspace) as (port, service):

        async def second():
            options = GrpcOptions(host="127.0.0.1", port=port)
            async with grpc_server(service, Access(workspace), options):
                pass

        with pytest.raises(InputError, match=f"gRPC cannot listen on 127.0.0.1:{port}"):
            asyncio.run(second())


def test_the_generated_messages_are_those_of_the_proto_file():
    text = (Path(ranking_pb2.__file__).parent / "ranking.proto").read_text()
    written = {
        name: {
            (field, int(number), kind, bool(repeated))
            for repeated, kind, field, number in re.findall(
                r"^  (repeated )?(\w+) (\w+) = (\d+);", body, re.MULTILINE
            )
        }
        for name, body in re.findall(r"^message (\w+) \{\n(.*?)^\}", text, re.DOTALL | re.MULTILINE)
    }
    kinds = {3: "int64", 2: "float", 9: "string", 8: "bool"}  # FieldDescriptorProto.Type
    generated = {
        name: {
            (field.name, field.number, kinds[field.type], field.is_repeated)
            for field in message.fields
        }
        for name, message in ranking_pb2.DESCRIPTOR.message_types_by_name.items()
    }
    assert written == generated

"""Sound files in object stores: what is read, what is said when it cannot be, and by when."""

import io
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile

from feature_repo.errors import InputError, StoreUnavailableError
from ray_jobs.encoders import audio_sources, audio_states
from ray_jobs.encoders.audio import windows
from ray_jobs.encoders.audio_sources import AudioError, open_source
from ray_jobs.encoders.audio_states import SourceStates

RATE = 1000


@pytest.fixture(autouse=True)
def fresh_stores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clients of earlier tests know another endpoint."""
    monkeypatch.setattr(audio_sources, "PAUSE_S", 0.001)
    audio_sources._s3.cache_clear()
    audio_sources._health.clear()
    yield
    audio_sources._s3.cache_clear()
    audio_sources._health.clear()


class Server:
    """Answers as it is told, and counts."""

    def __init__(self) -> None:
        self.status, self.failures, self.content = 200, 0, b""
        self.hangs = threading.Event()
        self.hangs.set()
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                outer.hangs.wait(30)
                status = 503 if outer.asked <= outer.failures else outer.status
                body = outer.content if status == 200 else b""
                asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                if asked and status == 200:
                    first, last = map(int, asked.groups())
                    status, body = 206, body[first : last + 1]
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Last-Modified", "Sun, 22 Nov 2026 10:00:00 GMT")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An S3 server of one object, which every key names."""
    server = Server()
    for name, value in {
        "AWS_ENDPOINT_URL": server.url, "AWS_ACCESS_KEY_ID": "test", "AWS_REGION": "us-east-1",
        "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    yield server
    server.hangs.set()
    server.http.shutdown()
    server.http.server_close()


def flac(seconds: float = 6.0, seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE))
    stream = io.BytesIO()
    soundfile.write(stream, noise, RATE, format="FLAC")
    return stream.getvalue()


def put(store, **objects: bytes) -> None:
    import boto3

    client = boto3.session.Session().client("s3")
    for key, content in objects.items():
        client.put_object(Bucket=store.bucket, Key=f"music/{key}", Body=content)


def uri_of(store, key: str) -> str:
    return f"s3://{store.bucket}/music/{key}"


def test_a_file_in_s3_has_the_windows_of_the_same_file_on_the_disk(object_store, tmp_path) -> None:
    put(object_store, tune=flac())
    (tmp_path / "tune").write_bytes(flac())
    of = {"sample_rate": RATE, "seconds": 5.0}
    np.testing.assert_array_equal(
        windows(uri_of(object_store, "tune"), tmp_path, **of), windows("tune", tmp_path, **of)
    )
    with pytest.raises(AudioError, match="missing: no object s3://lake/music/gone"):
        windows(uri_of(object_store, "gone"), tmp_path, **of)
    with pytest.raises(AudioError, match="missing: no object"):
        windows("s3://no-such-bucket/tune", tmp_path, **of)
    put(object_store, empty=b"")
    with pytest.raises(AudioError, match="zero bytes"):
        windows(uri_of(object_store, "empty"), tmp_path, **of)


def test_of_a_large_object_only_the_middle_is_fetched(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(audio_sources, "WHOLE_BYTES", 1 << 16)
    monkeypatch.setattr(audio_sources, "RANGE_BYTES", 1 << 16)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 3600 * RATE).astype("f4")
    stream = io.BytesIO()
    soundfile.write(stream, noise, RATE, format="WAV", subtype="PCM_16")
    server.content = stream.getvalue()
    cut = windows("s3://bucket/long.wav", tmp_path, sample_rate=RATE, seconds=5, longest_s=10)
    middle = noise[1795 * RATE : 1805 * RATE].reshape(2, -1)
    np.testing.assert_allclose(cut, middle, atol=1e-4)
    # Its size, its head (and perhaps its end), and ranges of 64 KiB for 20 kB of samples.
    assert server.asked <= 8 < len(server.content) // (1 << 16)


def test_a_store_that_fails_for_a_moment_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.content, server.failures = flac(), 2
    with open_source("s3://bucket/tune.flac", tmp_path) as stream:
        assert stream.read() == server.content


def test_one_object_that_fails_is_not_a_store_that_fails(server: Server, tmp_path: Path) -> None:
    server.status = 500
    assert SourceStates(tmp_path).of(["s3://bucket/tune.flac"]) == [b"unreachable"]
    with pytest.raises(StoreUnavailableError, match="run the command again"):
        SourceStates(tmp_path).of([f"s3://bucket/{number}.flac" for number in range(20)])


@pytest.mark.parametrize(
    ("status", "reason"), [(500, "unreachable: "), (403, "not allowed: "), (404, "missing: ")]
)
def test_what_a_store_answers_is_the_reason(
    server: Server, tmp_path: Path, status: int, reason: str
) -> None:
    server.status = status
    with pytest.raises(AudioError, match=reason):
        open_source("s3://bucket/tune.flac", tmp_path)
    server.asked = 0
    with pytest.raises(AudioError, match=reason):
        open_source("s3://bucket/tune.flac", tmp_path)
    assert server.asked <= (audio_sources.ATTEMPTS if status == 500 else 2)


def test_a_store_that_hangs_costs_a_bounded_time_and_is_then_left_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(audio_sources, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(audio_sources, "ATTEMPTS", 2)
    monkeypatch.setattr(audio_sources, "FAILURES", 2)
    server.hangs.clear()
    for number in range(audio_sources.FAILURES):
        with pytest.raises(AudioError, match="unreachable"):
            open_source(f"s3://bucket/{number}.flac", tmp_path)
    asked = server.asked
    assert asked >= audio_sources.FAILURES * audio_sources.ATTEMPTS
    with pytest.raises(AudioError, match="unreachable"):
        open_source("s3://bucket/next.flac", tmp_path)
    assert server.asked == asked
    with pytest.raises(StoreUnavailableError, match="run the command again when its store answers"):
        SourceStates(tmp_path).of(["s3://bucket/next.flac"])


def test_the_state_of_an_object_tells_a_change_listed_or_asked_for(object_store, tmp_path) -> None:
    names = [f"t{number}" for number in range(audio_states.LISTED_FROM)]
    put(object_store, **{name: flac(seed=3) for name in names})
    uris = [uri_of(object_store, name) for name in [*names, "gone"]]
    listed = SourceStates(tmp_path).of([*uris, None])
    alone = [SourceStates(tmp_path).of([uri])[0] for uri in uris]
    assert listed == [*alone, audio_states.NULL]
    assert alone[-1] == b"missing" != alone[0]
    put(object_store, t1=flac(seconds=7))
    changed = SourceStates(tmp_path).of(uris)
    assert [before == after for before, after in zip(alone, changed, strict=True)].count(False) == 1
    assert SourceStates(tmp_path).of([f"s3://no-such-bucket/{n}" for n in names])[0] == b"missing"


def test_states_that_nobody_may_see_are_the_users_affair(server: Server, tmp_path: Path) -> None:
    server.status = 403
    with pytest.raises(InputError, match=r"audio_uri not allowed: s3://bucket/tune\.flac"):
        SourceStates(tmp_path).of(["s3://bucket/tune.flac"])


def test_other_stores_of_fsspec_and_what_is_none(tmp_path: Path) -> None:
    with fsspec.open("memory://music/tune.flac", "wb") as stream:
        stream.write(flac())
    cut = windows("memory://music/tune.flac", tmp_path, sample_rate=RATE, seconds=5)
    assert cut.shape == (2, 5 * RATE)
    for uri in ("ssh://host/tune", "zip://a::memory://b", "github://a:b@c/d", "s3:///", "http://["):
        with pytest.raises(AudioError):
            open_source(uri, tmp_path)
    states = SourceStates(tmp_path).of(["memory://music/tune.flac", "ssh://host/tune", "http://["])
    assert states[1:] == [b"missing", b"missing"]
    assert states[0] != b"missing"

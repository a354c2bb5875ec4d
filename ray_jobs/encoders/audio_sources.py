"""Where sound files lie: the workspace's disk, or any store that fsspec opens, `s3://`.

    with open_source("s3://music/a/tune.flac", root) as stream: ...

A path or `file://` is a local file. `s3://` is read by Arrow's own client (fsspec's, s3fs, pins a
botocore that boto3 refuses); it finds credentials and AWS_ENDPOINT_URL as all of AWS's clients do.
Small objects come in one request, of larger ones only the ranges that a decoder asks for: of a
three-hour file its middle. A request waits TIMEOUT_S at most and is tried ATTEMPTS times, unless
the answer is final (no such object, not allowed). A store that failed three files in a row is not
asked again for BREAK_S, so that a dead store costs a job seconds and not a wait for every file.
"""

import io
import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

T = TypeVar("T")
CONNECT_S, TIMEOUT_S = 5.0, 20.0
ATTEMPTS = 3
PAUSE_S = 0.2
"""Before the second attempt; doubled before each further one."""
FAILURES, BREAK_S = 3, 30.0
WHOLE_BYTES = 32 * 2**20
"""An object up to this size comes in one request: six minutes of MP3, three of FLAC."""
RANGE_BYTES = 2 * 2**20
SCHEMES = ("s3", "gs", "abfs", "abfss", "hdfs", "http", "https", "memory")
"""Of the stores; fsspec knows more, that log in to hosts or run through other files."""
UNREACHABLE = "unreachable"
"""First word of the reason of a track whose store failed: the next run tries it again."""
NOT_ALLOWED = ("ACCESS_DENIED", "HTTP status 403")
NOT_THERE = ("NO_SUCH_BUCKET", "NO_SUCH_KEY")
"""What Arrow says where others raise PermissionError and FileNotFoundError."""


class AudioError(ValueError):
    """Why a track has no windows. The text goes into its error row."""


@dataclass
class Health:
    """Of one store, as this process has seen it."""

    failures: int = 0
    closed_until: float = 0.0
    reason: str = ""

    @property
    def closed(self) -> bool:
        return time.monotonic() < self.closed_until


_health: defaultdict[str, Health] = defaultdict(Health)


def health_of(uri: str) -> Health:
    return _health[uri.partition("://")[0]]


def is_remote(uri: str | None) -> bool:
    return bool(uri) and "://" in str(uri) and not str(uri).startswith("file://")


def local_path(uri: str | None, root: Path) -> Path:
    """The local file that a URI names, there or not. Relative ones start from `root`."""
    if not uri:
        raise AudioError("missing: the track has no audio_uri")
    if "://" not in uri:
        return root / uri
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise AudioError(f"audio_uri is no URI: {error}") from error
    if parts.scheme != "file":
        raise AudioError(f"audio_uri scheme {parts.scheme}: expected a path or file://")
    return Path(unquote(parts.path))


def open_source(uri: str | None, root: Path) -> BinaryIO:
    """The file's bytes, to be read and sought in. AudioError says why there are none."""
    if not is_remote(uri):
        file = local_path(uri, root)
        try:
            if not file.is_file():
                raise AudioError(f"missing: no file {file.name}")
            return file.open("rb")
        except (OSError, ValueError) as error:  # not readable; a null byte in the name
            if isinstance(error, AudioError):
                raise
            raise AudioError(f"not readable: {error}") from error
    uri = str(uri)
    store, path = store_of(uri)
    info = asked(uri, lambda: store.info(path))
    if info.get("type") != "file":
        raise AudioError(f"missing: no object {uri}")
    size = info.get("size") or 0
    if size <= WHOLE_BYTES:
        return io.BytesIO(asked(uri, lambda: store.cat_file(path)) if size else b"")
    file = asked(uri, lambda: store.open(path, "rb"))
    return io.BufferedReader(_Ranges(uri, file, size), RANGE_BYTES)


def store_of(uri: str) -> tuple[Any, str]:
    """The fsspec file system of a URI, and the path in it. AudioError if fsspec knows none."""
    import fsspec

    try:
        parts = urlsplit(uri)
        if parts.scheme not in SCHEMES:
            raise AudioError(
                f"audio_uri scheme {parts.scheme}: expected a path, file://, or "
                f"{', '.join(SCHEMES)}"
            )
        if parts.scheme == "s3":
            return _s3(), f"{parts.netloc}{unquote(parts.path)}"
        return fsspec.core.url_to_fs(uri)
    except AudioError:
        raise
    except (ValueError, ImportError) as error:  # no URI; a store whose package is not installed
        raise AudioError(f"audio_uri cannot be opened: {error}") from error
    except OSError as error:  # a store that is asked when its client is made
        raise AudioError(f"{UNREACHABLE}: {_said(error)}") from error


@cache
def _s3() -> Any:
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    return ArrowFSWrapper(
        S3FileSystem(
            endpoint_override=os.environ.get("AWS_ENDPOINT_URL"),
            connect_timeout=CONNECT_S,
            request_timeout=TIMEOUT_S,
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=1),  # `asked` tries again
        )
    )


def asked(uri: str, request: Callable[[], T]) -> T:
    """The answer to a request, tried again while that may help; AudioError with the reason."""
    health = health_of(uri)
    if health.closed:
        raise AudioError(f"{UNREACHABLE}: {health.reason}")
    for attempt in range(ATTEMPTS):
        try:
            answer = request()
            health.failures = 0
            return answer
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            health.failures = 0
            raise AudioError(f"missing: no object {uri}") from error
        except PermissionError as error:
            raise AudioError(f"not allowed: {uri}: {_said(error)}") from error
        except (OSError, EOFError) as error:  # TimeoutError and ConnectionError are OSErrors
            reason = _said(error)
            if any(word in reason for word in NOT_ALLOWED):
                raise AudioError(f"not allowed: {uri}: {reason}") from error
            if any(word in reason for word in NOT_THERE):
                raise AudioError(f"missing: no object {uri}: {reason}") from error
        if attempt + 1 < ATTEMPTS:
            time.sleep(PAUSE_S * 2**attempt)
    health.failures += 1
    health.reason = reason
    if health.failures >= FAILURES:
        health.closed_until = time.monotonic() + BREAK_S
    raise AudioError(f"{UNREACHABLE}: {reason}")


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@dataclass
class _Ranges(io.RawIOBase):
    """A large object: each read is one request, so it is put behind a buffer."""

    uri: str
    file: Any
    size: int
    at: int = field(default=0, init=False)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        def read() -> bytes:
            self.file.seek(self.at)
            return self.file.read(len(buffer))

        if self.at >= self.size:
            return 0
        data = asked(self.uri, read)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)

    def close(self) -> None:
        self.file.close()
        super().close()

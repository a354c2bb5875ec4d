"""Where sound files lie: the workspace's disk, or any store that fsspec opens, `s3://`.

    with open_source("s3://music/a/tune.flac", root) as stream: ...
    SourceStates(root).of(uris)

A path or `file://` is a local file. `s3://` is read by Arrow's own client (fsspec's, s3fs, pins a
botocore that boto3 refuses); it finds credentials and AWS_ENDPOINT_URL as all of AWS's clients do.
Small objects come in one request, of larger ones only the ranges that a decoder asks for: of a
three-hour file its middle. A request waits TIMEOUT_S at most and is tried ATTEMPTS times, unless
the answer is final (no such object, not allowed). A store that failed three files in a row is not
asked again for BREAK_S, so that a dead store costs a job seconds and not a wait for every file.
"""

import io
import os
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

from feature_repo.errors import InputError, StoreUnavailableError

T = TypeVar("T")
CONNECT_S, TIMEOUT_S = 5.0, 20.0
ATTEMPTS = 3
PAUSE_S = 0.2
"""Before the second attempt; doubled before each further one."""
FAILURES, BREAK_S = 3, 30.0
WHOLE_BYTES = 32 * 2**20
"""An object up to this size comes in one request: six minutes of MP3, three of FLAC."""
RANGE_BYTES = 2 * 2**20
ASKED_AT_ONCE = 32
LISTED_FROM = 16
"""Objects of one folder from which listing it is cheaper than asking for each."""
SCHEMES = ("s3", "gs", "abfs", "abfss", "hdfs", "http", "https", "memory")
"""Of the stores; fsspec knows more, that log in to hosts or run through other files."""
UNREACHABLE = "unreachable"
"""First word of the reason of a track whose store failed: the next run tries it again."""
NOT_ALLOWED = ("ACCESS_DENIED", "HTTP status 403")
NOT_THERE = ("NO_SUCH_BUCKET", "NO_SUCH_KEY")
"""What Arrow says where others raise PermissionError and FileNotFoundError."""
NULL = b"null"
CHANGED_KEYS = ("LastModified", "mtime", "updated", "last_modified", "created")
"""What fsspec's file systems call the time of change."""


class AudioError(ValueError):
    """Why a track has no windows. The text goes into its error row."""


@dataclass
class _Health:
    """Of one store, as this process has seen it."""

    failures: int = 0
    closed_until: float = 0.0
    reason: str = ""


_health: defaultdict[str, _Health] = defaultdict(_Health)


def _of(uri: str) -> _Health:
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
    store, path = _store(uri)
    info = _asked(uri, lambda: store.info(path))
    if info.get("type") != "file":
        raise AudioError(f"missing: no object {uri}")
    size = info.get("size") or 0
    if size <= WHOLE_BYTES:
        return io.BytesIO(_asked(uri, lambda: store.cat_file(path)) if size else b"")
    file = _asked(uri, lambda: store.open(path, "rb"))
    return io.BufferedReader(_Ranges(uri, file, size), RANGE_BYTES)


class SourceStates:
    """For URIs what tells whether their files have changed: size, time of change, ETag.

    Raises StoreUnavailableError if a store cannot be asked: nothing is known of its files then.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._listed: dict[str, dict[str, bytes]] = {}
        """By folder, the states of its objects: about 200 bytes each."""

    def of(self, uris: Sequence[str | None]) -> list[bytes]:
        different = {uri for uri in uris if uri}
        states = {uri: _local_state(uri, self._root) for uri in different if not is_remote(uri)}
        folders: defaultdict[str, list[str]] = defaultdict(list)
        for uri in different - set(states):
            folders[uri.rpartition("/")[0]].append(uri)
        # The threads are here and not a folder each: one folder may hold all the files.
        alone = []
        for folder, members in folders.items():
            if folder not in self._listed and len(members) >= LISTED_FROM and _lists_well(folder):
                self._listed[folder] = _list(folder)
            if folder in self._listed:
                listed = self._listed[folder]
                states |= {uri: listed.get(_path(uri), b"missing") for uri in members}
            else:
                alone += members
        with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
            states |= dict(zip(alone, pool.map(_remote_state, alone), strict=True))
        return [states[uri] if uri else NULL for uri in uris]


# --- stores ----------------------------------------------------------------------------------


def _store(uri: str) -> tuple[Any, str]:
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
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=1),  # `_asked` tries again
        )
    )


def _asked(uri: str, request: Callable[[], T]) -> T:
    """The answer to a request, tried again while that may help; AudioError with the reason."""
    health = _of(uri)
    if time.monotonic() < health.closed_until:
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
        data = _asked(self.uri, read)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)

    def close(self) -> None:
        self.file.close()
        super().close()


# --- states ----------------------------------------------------------------------------------


def _local_state(uri: str, root: Path) -> bytes:
    try:
        found = os.stat(local_path(uri, root))
    except (OSError, ValueError):  # no such file, or no URI that names one
        found = None
    if found is None or not stat.S_ISREG(found.st_mode):
        return b"missing"
    return f"{found.st_size}\0{found.st_mtime_ns}".encode()


def _path(uri: str) -> str:
    """Of an object in its store; empty if there is no such store."""
    try:
        return _store(uri)[1].strip("/")
    except AudioError:
        return ""


def _lists_well(folder: str) -> bool:
    """Lists of web servers hold neither sizes nor times."""
    return bool(_path(folder)) and not folder.startswith("http")


def _list(folder: str) -> dict[str, bytes]:
    try:
        store, path = _store(folder)
        found = _asked(folder, lambda: store.ls(path, detail=True))
    except AudioError as error:
        _said_or_raised(folder, error, alone=False)
        found = []
    return {info["name"].strip("/"): _state(info) for info in found}


def _remote_state(uri: str) -> bytes:
    try:
        store, path = _store(uri)
        return _state(_asked(uri, lambda: store.info(path)))
    except AudioError as error:
        return _said_or_raised(uri, error, alone=True)


def _said_or_raised(uri: str, error: AudioError, *, alone: bool) -> bytes:
    """The state of what cannot be asked for, unless it is the store that cannot be asked."""
    kind = str(error).partition(":")[0]
    if kind == UNREACHABLE and not (alone and time.monotonic() >= _of(uri).closed_until):
        raise StoreUnavailableError(
            f"{uri} cannot be asked for ({error}); run the command again when its store answers"
        ) from error
    if kind == "not allowed":
        raise InputError(f"audio_uri {error}") from error
    return kind.encode() if kind == UNREACHABLE else b"missing"


def _state(info: dict[str, Any]) -> bytes:
    if info.get("type") != "file":
        return b"missing"
    etag = info.get("ETag") or info.get("etag") or ""
    changed = next((info[key] for key in CHANGED_KEYS if info.get(key) is not None), "")
    return f"{info.get('size')}\0{changed}\0{etag}".encode()

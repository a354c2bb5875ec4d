"""Whether sound files have changed: what their disk or store says of them, without reading them.

    SourceStates(root).of(uris)

Objects of one folder are listed together, others asked for one by one, many at once.
"""

import os
import stat
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from feature_repo.errors import InputError, StoreUnavailableError
from ray_jobs.encoders.audio_sources import (
    UNREACHABLE,
    AudioError,
    asked,
    health_of,
    is_remote,
    local_path,
    store_of,
)

ASKED_AT_ONCE = 32
LISTED_FROM = 16
"""Objects of one folder from which listing it is cheaper than asking for each."""
NULL = b"null"
CHANGED_KEYS = ("LastModified", "mtime", "updated", "last_modified", "created")
"""What fsspec's file systems call the time of change."""


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
        return store_of(uri)[1].strip("/")
    except AudioError:
        return ""


def _lists_well(folder: str) -> bool:
    """Lists of web servers hold neither sizes nor times."""
    return bool(_path(folder)) and not folder.startswith("http")


def _list(folder: str) -> dict[str, bytes]:
    try:
        store, path = store_of(folder)
        found = asked(folder, lambda: store.ls(path, detail=True))
    except AudioError as error:
        _said_or_raised(folder, error, alone=False)
        found = []
    return {info["name"].strip("/"): _state(info) for info in found}


def _remote_state(uri: str) -> bytes:
    try:
        store, path = store_of(uri)
        return _state(asked(uri, lambda: store.info(path)))
    except AudioError as error:
        return _said_or_raised(uri, error, alone=True)


def _said_or_raised(uri: str, error: AudioError, *, alone: bool) -> bytes:
    """The state of what cannot be asked for, unless it is the store that cannot be asked."""
    kind = str(error).partition(":")[0]
    if kind == UNREACHABLE and not (alone and not health_of(uri).closed):
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

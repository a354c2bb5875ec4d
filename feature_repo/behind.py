"""The note that online rows are behind the journal, and since when: it outlives the process.

`<folder>/<writer>.json` holds `since_us`, microseconds since 1970; it is on the disk before `add`
returns. Its writer holds its lock (flock: one machine) and alone removes it; the note of a writer
that ended is taken over by whoever starts next.
"""

import fcntl
import json
import os
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from feature_repo.durable_files import make_folder, sync
from feature_repo.journal_files import Record

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Behind:
    """What one process still owes the online store. Threads may call at the same time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f"{uuid4().hex}.json"
        self._lock = threading.Lock()
        self._ending = threading.Lock()
        self._since: datetime | None = None
        self._descriptor: int | None = None
        self._meanwhile: list[Record] = []
        """Events added while `end` runs: it may have read the journal before they were in it."""

    def add(self, events: Sequence[Record], first: datetime) -> None:
        """These events, of which the journal took the earliest at `first`, are not online."""
        with self._lock:
            self._add(events, first)

    def add_if_any(self, events: Sequence[Record], first: datetime) -> bool:
        """Adds them if others wait already: they need not find out for themselves."""
        with self._lock:
            if self._since is None:
                return False
            self._add(events, first)
            return True

    def end(
        self,
        bring_since: Callable[[datetime], bool],
        bring: Callable[[Sequence[Record]], bool],
    ) -> bool:
        """Brings everything online; removes the note, and returns True, if that went well.

        `bring_since(moment)` brings all that the journal took from then on, and may take long:
        events are added meanwhile. Those go by `bring`, for which new ones wait.
        """
        with self._ending:
            with self._lock:
                since = self._since
                self._meanwhile = []
            if since is None:
                return True
            brought = bring_since(since)
            with self._lock:
                if not brought or not bring(self._meanwhile):
                    return False
                self._meanwhile = []
                self._forget()
                return True

    def take_over(self) -> bool:
        """Makes the notes of writers that ended one's own. Whether there were any."""
        found = False
        for path in sorted(self._folder.glob("*.json")):
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists():  # else another has taken it over and let go
                    since_us = json.loads(path.read_text())["since_us"]
                    with self._lock:
                        self._note(EPOCH + timedelta(microseconds=since_us))
                    path.unlink()
                    found = True
            except BlockingIOError:
                pass  # its writer lives
            finally:
                os.close(descriptor)
        return found

    def release(self) -> None:
        """Leaves the note, if any, to whoever starts next."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._since = self._descriptor = None

    def _add(self, events: Sequence[Record], first: datetime) -> None:
        self._note(first)
        if self._ending.locked():
            self._meanwhile += events

    def _note(self, first: datetime) -> None:
        """Has the note say `first`, unless it names an earlier moment. Under the lock."""
        if self._since is not None and self._since <= first:
            return
        make_folder(self._folder)
        partial = self._path.with_suffix(".partial")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        # Locked before it has its name, so that nobody ever finds it without its writer.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        since_us = (first - EPOCH) // timedelta(microseconds=1)
        os.write(descriptor, json.dumps({"since_us": since_us}).encode())
        os.fsync(descriptor)
        os.rename(partial, self._path)
        sync(self._folder)
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._since, self._descriptor = first, descriptor

    def _forget(self) -> None:
        assert self._descriptor is not None
        self._path.unlink()
        os.close(self._descriptor)
        self._since = self._descriptor = None

"""One writer at a time for a workspace in an object store: a lock that ends with its holder.

The lock is an object that is written only where none is, renewed while its holder lives, and
taken over once it has not been renewed for LOCK_EXPIRY_S: a killed writer blocks others for a
minute at most, and its own machine not at all. It spares writers work that they could not publish;
what protects the workspace is that its index is only ever written over the one that was read.
"""

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from feature_repo.errors import InputError
from feature_repo.object_store import Changed, Found, ObjectStore

LOCK = "lock.json"
LOCK_EXPIRY_S = 60.0
RENEWALS_PER_EXPIRY = 4
SHORTEST_PAUSE_S = 1.0

logger = logging.getLogger(__name__)


class WriteLock:
    """A held lock, renewed by a thread until `release`."""

    def __init__(self, objects: ObjectStore, owner: str, expiry_s: float) -> None:
        self._objects = objects
        self._owner = owner
        self._etag = self._take(expiry_s)
        self._stop = threading.Event()
        self._mutex = threading.Lock()
        self._lost = False
        self._thread = threading.Thread(
            target=self._renew_forever,
            args=(max(SHORTEST_PAUSE_S, expiry_s / RENEWALS_PER_EXPIRY),),
            name="workspace-lock",
            daemon=True,
        )
        self._thread.start()

    def _take(self, expiry_s: float) -> str:
        held = self._objects.read(LOCK)
        if held is not None and held.value.get("owner") != self._owner and held.age_s <= expiry_s:
            raise self._busy(held)
        try:
            etag = self._objects.write(LOCK, self._value(), over=held.etag if held else None)
        except Changed:
            raise self._busy(self._objects.read(LOCK)) from None
        self._objects.check_conditional_writes(LOCK)
        return etag

    def _value(self) -> dict[str, str]:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return {"owner": self._owner, "host": socket.gethostname(), "renewed_at": now}

    def _busy(self, held: Found | None) -> InputError:
        by = f"on {held.value.get('host')}, last seen {held.age_s:.0f} s ago" if held else "by now"
        return InputError(f"another run is writing {self._objects.uri} ({by}); wait until it ends")

    def _renew_forever(self, pause_s: float) -> None:
        while not self._stop.wait(pause_s):
            try:
                self.renew()
            except InputError as error:  # it may be back before the lock expires
                logger.warning("the lock could not be renewed: %s", error)

    def renew(self) -> None:
        """Holds it for another while. Raises InputError if another run has taken it over."""
        with self._mutex:
            if not self._lost and not self._stop.is_set():
                try:
                    self._etag = self._objects.write(LOCK, self._value(), over=self._etag)
                except Changed:
                    # A renewal whose answer was lost is ours too.
                    held = self._objects.read(LOCK)
                    self._lost = held is None or held.value.get("owner") != self._owner
                    if held is not None and not self._lost:
                        self._etag = held.etag
            if self._lost:
                raise InputError(
                    f"this run lost {self._objects.uri} to another writer, because it was "
                    "unreachable for too long; run the command again"
                )

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        held = self._objects.read(LOCK)
        if held is not None and held.value.get("owner") == self._owner:
            self._objects.delete([LOCK])


@contextmanager
def write_lock(
    objects: ObjectStore, owner: str, expiry_s: float = LOCK_EXPIRY_S
) -> Iterator[WriteLock]:
    """Holds the workspace's lock; InputError if another run does.

    `owner` says whose it is: a lock that this owner left behind is taken over at once, so no two
    living runs may share it.
    """
    lock = WriteLock(objects, owner, expiry_s)
    try:
        yield lock
    finally:
        with suppress(InputError):  # it expires by itself
            lock.release()

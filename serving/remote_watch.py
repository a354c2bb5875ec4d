"""Brings what other machines publish into the local copy of a workspace in an object store.

    with following(workspace, every_s=5.0):     # while a server runs on the copy
        ...

A release, a rollback, new tracks: the copy has them within `every_s` and the time of the download,
and the server finds them there as on a local disk (`live_releases.py`, `catalogue_watch.py`). A
look is one request without a body. What cannot be fetched leaves the old state serving, is logged,
and is tried again at the next look. Nothing to do for a local workspace.
"""

import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from feature_repo.errors import InputError
from feature_repo.working_copy import bring_up_to_date
from feature_repo.workspace import Workspace
from serving.background import give_way

logger = logging.getLogger(__name__)


@contextmanager
def following(workspace: Workspace, *, every_s: float) -> Iterator[None]:
    """Looks every `every_s` seconds until the block ends; a download under way is waited for."""
    if not (every_s > 0 and math.isfinite(every_s)):
        raise InputError(f"every_s is {every_s}; expected seconds above 0")
    if workspace.is_local:
        yield
        return
    stopping = threading.Event()

    def watch() -> None:
        give_way()
        while not stopping.wait(every_s):
            try:
                if bring_up_to_date(workspace):
                    logger.info("%s was changed by others and fetched", workspace.location)
            except Exception:
                # Whatever the store or the disk says: what is loaded serves on.
                logger.exception("changes of %s", workspace.location)

    thread = threading.Thread(target=watch, name="remote-workspace", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()

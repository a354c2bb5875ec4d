"""Something made from a folder of parquet files, made again when the files are others.

    catalogue = LoadedFiles(workspace.tracks, lambda: Catalogue.load(workspace))
    catalogue.now().search("blue", 20)

Nothing is read before the first `now`, so a server whose page nobody opens holds none of it.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import pyarrow as pa

from feature_repo.artifacts import parquet_files

T = TypeVar("T")
Stamp = tuple[tuple[str, int, int], ...]
logger = logging.getLogger(__name__)


class LoadedFiles(Generic[T]):
    """One value and the files it was made from. Threads may ask at the same time."""

    def __init__(self, folder: Path, load: Callable[[], T]) -> None:
        self._folder, self._load = folder, load
        self._loading = threading.Lock()
        self._held: tuple[Stamp, T] | None = None

    def now(self) -> T:
        """The value of the files as they are; while it is made anew, others get the old one."""
        held = self._held
        if held is None:
            with self._loading:
                if self._held is None:
                    self._held = self._stamp(), self._load()
                return self._held[1]
        stamp = self._stamp()
        # A folder that is being replaced is not there for a moment: the old value stays.
        if stamp in (held[0], ()) or not self._loading.acquire(blocking=False):
            return held[1]
        try:
            self._held = held = stamp, self._load()
        except (OSError, pa.ArrowInvalid):
            # A file that is being replaced; the next request looks again.
            logger.warning("%s changed and could not be read; the old rows are shown", self._folder)
        finally:
            self._loading.release()
        return held[1]

    def _stamp(self) -> Stamp:
        try:
            stats = [(path.name, path.stat()) for path in parquet_files(self._folder)]
        except FileNotFoundError:
            return ()
        return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)

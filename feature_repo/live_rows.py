"""Listens of live events into the online store: merged at once, or as soon as the store answers.

A merge is idempotent and commutes (feature_repo.stores), so nobody has to know what is online
already. When the store does not answer, a file `journal/behind/<writer>.json` says since when
rows are behind, before anybody is told `pending` (behind.py). From then on a thread tries again,
with growing pauses, all that the journal took since that moment; events that come meanwhile wait
for it. The note of a process that ended is taken over by the next that starts. What is folded and
brought online by the nightly jobs meanwhile is merged once more, to no effect.
"""

import logging
import threading
import time
from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore, FeatureView

from feature_repo import schema
from feature_repo.behind import Behind
from feature_repo.errors import ArtifactError, StoreUnavailableError
from feature_repo.event_journal import journal_folder, since
from feature_repo.group_commit import GroupCommit
from feature_repo.online import packed_store
from feature_repo.store import find_view
from feature_repo.tombstones import read_tombstones
from feature_repo.workspace import Workspace

log = logging.getLogger(__name__)
ROWS_PER_WRITE = 10_000
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
VIEW_SECONDS = 60.0
"""How long the view is used before it is looked up again: a publish may change its length."""


def listen_rows(events: pa.Table) -> pa.Table:
    """Events with their arrival (schema.EVENTS) -> rows of one listen for `user_sequence`.

    Skips are left out. Row time = max(event_timestamp, ingested_at) + 1 us, as in the event log.
    """
    listens = events.filter(_is_listen(events))
    happened_us, arrived_us = (
        listens[name].cast(pa.int64()).to_numpy()
        for name in (schema.EVENT_TIMESTAMP, "ingested_at")
    )
    visible_us = np.maximum(happened_us, arrived_us) + 1
    codes = pa.array(schema.ACTION_CODES.values(), pa.int64())
    names = pa.array(schema.ACTION_CODES)
    columns = {
        schema.SEQUENCE_TRACK_IDS: listens[schema.TRACK_ID],
        schema.SEQUENCE_TIMESTAMPS: pa.array(happened_us),
        schema.SEQUENCE_ACTIONS: codes.take(pc.index_in(listens["action"], names)),
        schema.SEQUENCE_EVENT_IDS: listens["event_id"],
    }
    offsets = pa.array(np.arange(len(listens) + 1, dtype="i4"))
    lists = {name: pa.ListArray.from_arrays(offsets, _flat(c)) for name, c in columns.items()}
    times = pa.array(visible_us).cast(schema.TIMESTAMP)
    return pa.table({schema.USER_ID: listens["user_id"], schema.EVENT_TIMESTAMP: times, **lists})


def _is_listen(events: pa.Table) -> pa.ChunkedArray:
    return pc.is_in(events["action"], pa.array(schema.LISTEN_ACTIONS))


def _flat(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _merging_view(store: FeatureStore) -> FeatureView:
    """The sequence view; ArtifactError where its tag does not say that rows are merged."""
    view = find_view(store, schema.USER_SEQUENCE)
    if schema.SEQUENCE_LENGTH_TAG not in view.tags:
        raise ArtifactError(
            f"view {view.name} has no tag {schema.SEQUENCE_LENGTH_TAG}, so a write would replace "
            "a user's listens; run `crescendo sequences` and `crescendo publish` again"
        )
    return view


class OnlineRows:
    """Merges listens into `user_sequence`; concurrent calls share a round trip."""

    def __init__(self, workspace: Workspace, store: FeatureStore) -> None:
        self._workspace = workspace
        self._store = store
        self._online = packed_store(store)
        self._view, self._view_until = _merging_view(store), 0.0
        self._commits: GroupCommit[pa.Table, bool] = GroupCommit(self._merge_group)
        self._behind = Behind(journal_folder(workspace).absolute() / "behind")
        self._stop = threading.Event()
        self._retries: threading.Thread | None = None
        if self._behind.take_over():
            self._retry_in_background()

    def merge(self, events: pa.Table) -> bool:
        """Whether the listens among these events (schema.EVENTS, journalled) are online now."""
        listens = events.filter(_is_listen(events))
        return self._commits.do(listens) if len(listens) else True

    def catch_up(self) -> bool:
        """Merges what is behind, if anything is. Whether all of it is online now."""
        return self._behind.end(self._merge_since, self._merge_tables)

    def close(self) -> None:
        """Ends the retries. What is behind stays noted for the next process."""
        self._stop.set()
        if self._retries is not None:
            self._retries.join()
        self._behind.release()

    def _merge_group(self, waiting: list[pa.Table]) -> Sequence[bool]:
        """One call at a time: see GroupCommit."""
        events = pa.concat_tables(waiting)
        first = pc.min(events["ingested_at"]).as_py()
        online = False
        if not self._behind.add_if_any(events, first):
            online = self._merge_tables([events])
            if not online:
                self._behind.add(events, first)
                self._retry_in_background()
        return [online] * len(waiting)

    def _merge_since(self, moment: datetime) -> bool:
        if not self._merge_tables([]):
            return False  # before the journal is read for nothing
        events = since(self._workspace, moment)
        hidden = read_tombstones(self._workspace).hidden(
            events[schema.USER_ID].to_numpy(),
            events["event_id"].to_numpy(),
            events[schema.EVENT_TIMESTAMP].cast(pa.int64()).to_numpy(),
        )
        return self._merge_tables([events.filter(pa.array(~hidden))])

    def _merge_tables(self, tables: Sequence[pa.Table]) -> bool:
        """Whether the store took their listens; without any, whether it answers at all."""
        view = self._view_now()
        try:
            if not tables:
                columns = [(view, [schema.SEQUENCE_EVENT_IDS])]
                self._online.read_columns(self._store.config, columns, np.zeros(1, np.int64))
            for table in tables:
                rows = listen_rows(table)
                for start in range(0, len(rows), ROWS_PER_WRITE):
                    part = rows.slice(start, ROWS_PER_WRITE)
                    self._online.write_table(self._store.config, view, part)
        except StoreUnavailableError as error:
            log.warning("the online store is behind the journal: %s", error)
            return False
        return True

    def _view_now(self) -> FeatureView:
        if time.monotonic() > self._view_until:
            self._view = _merging_view(self._store)
            self._view_until = time.monotonic() + VIEW_SECONDS
        return self._view

    def _retry_in_background(self) -> None:
        self._retries = threading.Thread(target=self._retry, daemon=True)
        self._retries.start()

    def _retry(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._stop.is_set():
            try:
                if self.catch_up():
                    return
            except Exception:  # a damaged journal, a view that is gone: until somebody mends it
                log.exception("the online store stays behind the journal")
            self._stop.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

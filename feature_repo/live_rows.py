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
from datetime import datetime, timedelta
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore, FeatureView

from feature_repo import schema
from feature_repo.behind import EPOCH, Behind
from feature_repo.errors import ArtifactError, StoreUnavailableError
from feature_repo.event_journal import journal_folder, since
from feature_repo.group_commit import GroupCommit
from feature_repo.journal_files import Record, to_records
from feature_repo.online import packed_store
from feature_repo.store import find_view
from feature_repo.stores.packed_live import Arrivals, Listen, ListenRows, merge_listens
from feature_repo.tombstones import read_tombstones
from feature_repo.workspace import Workspace

log = logging.getLogger(__name__)
BEHIND = "the online store is behind the journal: %s"
ROWS_PER_WRITE = 10_000
LISTENS_PER_WRITE = 1000
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
VIEW_SECONDS = 60.0
"""How long the view is used before it is looked up again: a publish may change its length."""


def listen_rows(events: pa.Table) -> pa.Table:
    """Events with their arrival (schema.EVENTS) -> rows of one listen for `user_sequence`.

    Skips are left out. Row time = max(event_timestamp, ingested_at) + 1 us, as in the event log.
    """
    listens = events.filter(pc.is_in(events["action"], pa.array(schema.LISTEN_ACTIONS)))
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


def arrivals(listens: Sequence[Record]) -> dict[int, Arrivals]:
    """Listens among events with their arrival, by user; times as in `listen_rows`."""
    by_user: dict[int, list[Record]] = {}
    for listen in listens:
        by_user.setdefault(listen[schema.USER_ID], []).append(listen)
    return {
        user_id: Arrivals(
            event_us=max(max(e[schema.EVENT_TIMESTAMP], e["ingested_at"]) for e in own) + 1,
            listens=[
                Listen(
                    timestamp_us=e[schema.EVENT_TIMESTAMP],
                    event_id=e["event_id"],
                    track_id=e[schema.TRACK_ID],
                    action=schema.ACTION_CODES[e["action"]],
                )
                for e in own
            ],
        )
        for user_id, own in by_user.items()
    }


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
        self._look_up_view()
        self._commits: GroupCommit[Sequence[Record], bool] = GroupCommit(self._merge_group)
        self._behind = Behind(journal_folder(workspace).absolute() / "behind")
        self._stop = threading.Event()
        self._retries: threading.Thread | None = None
        if self._behind.take_over():
            self._retry_in_background()

    def merge(self, events: pa.Table) -> bool:
        """Whether the listens among these events (schema.EVENTS, journalled) are online now."""
        return self.merge_records(to_records(events))

    def merge_records(self, events: Sequence[Record]) -> bool:
        """`merge` of events one by one."""
        listens = [event for event in events if event["action"] in schema.LISTEN_ACTIONS]
        return self._commits.do(listens) if listens else True

    def catch_up(self) -> bool:
        """Merges what is behind, if anything is. Whether all of it is online now."""
        return self._behind.end(self._merge_since, self._merge_listens)

    def close(self) -> None:
        """Ends the retries. What is behind stays noted for the next process."""
        self._stop.set()
        if self._retries is not None:
            self._retries.join()
        self._behind.release()

    def _merge_group(self, waiting: list[Sequence[Record]]) -> Sequence[bool]:
        """One call at a time: see GroupCommit."""
        listens = list(chain.from_iterable(waiting))
        first_us = min(listen["ingested_at"] for listen in listens)
        first = EPOCH + timedelta(microseconds=first_us)
        online = False
        if not self._behind.add_if_any(listens, first):
            online = self._merge_listens(listens)
            if not online:
                self._behind.add(listens, first)
                self._retry_in_background()
        return [online] * len(waiting)

    def _merge_listens(self, listens: Sequence[Record]) -> bool:
        """Whether the store took them."""
        self._renew_view()
        try:
            for start in range(0, len(listens), LISTENS_PER_WRITE):
                part = arrivals(listens[start : start + LISTENS_PER_WRITE])
                merge_listens(self._online, self._store.config, self._rows, part)
        except StoreUnavailableError as error:
            log.warning(BEHIND, error)
            return False
        return True

    def _merge_since(self, moment: datetime) -> bool:
        """Whether the store took all listens that the journal took from then on."""
        self._renew_view()
        config = self._store.config
        try:
            asked = [(self._view, [schema.SEQUENCE_EVENT_IDS])]
            # Before the journal is read for nothing.
            self._online.read_columns(config, asked, np.zeros(1, np.int64))
            rows = listen_rows(self._not_forgotten(since(self._workspace, moment)))
            for start in range(0, len(rows), ROWS_PER_WRITE):
                self._online.write_table(config, self._view, rows.slice(start, ROWS_PER_WRITE))
        except StoreUnavailableError as error:
            log.warning(BEHIND, error)
            return False
        return True

    def _not_forgotten(self, events: pa.Table) -> pa.Table:
        hidden = read_tombstones(self._workspace).hidden(
            events[schema.USER_ID].to_numpy(),
            events["event_id"].to_numpy(),
            events[schema.EVENT_TIMESTAMP].cast(pa.int64()).to_numpy(),
        )
        return events.filter(pa.array(~hidden))

    def _renew_view(self) -> None:
        if time.monotonic() > self._view_until:
            self._look_up_view()

    def _look_up_view(self) -> None:
        self._view = _merging_view(self._store)
        self._rows = ListenRows(self._online.packed(self._store.config, self._view))
        self._view_until = time.monotonic() + VIEW_SECONDS

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

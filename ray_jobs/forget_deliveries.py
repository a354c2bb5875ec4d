"""Keeps forgotten users and events out of an ingest: a source may hold them for ever.

`without_forgotten(workspace, events)` drops them from the source's table before it is checked, so
they are neither accepted nor kept as rejected rows. A row of a forgotten user without a readable
time goes too.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.schema import EVENTS
from feature_repo.tombstones import read_tombstones
from feature_repo.workspace import Workspace
from ray_jobs.contract_checks import Verdict
from ray_jobs.progress import log

BEFORE_ALL = np.iinfo(np.int64).min


def without_forgotten(workspace: Workspace, events: pa.Table) -> pa.Table:
    """The source's events (any types, as in contract.SourceTables) less the forgotten ones."""
    stones = read_tombstones(workspace)
    if not stones.until_us and not len(stones.event_ids):
        return events
    verdict = Verdict(events)
    verdict.read_ids(EVENTS.field("user_id"))
    verdict.read_ids(EVENTS.field("event_id").with_nullable(True))
    verdict.read(EVENTS.field("event_timestamp"))
    users = verdict.columns["user_id"]
    event_ids = verdict.columns["event_id"]
    # The numbers that events get from us are no ids of the source.
    known = event_ids if pa.types.is_integer(event_ids.type) else pa.nulls(len(events), pa.int64())
    numbered = pc.is_valid(known).to_numpy(zero_copy_only=False)
    named = pc.is_valid(users).to_numpy(zero_copy_only=False)
    moments = verdict.columns["event_timestamp"].cast(pa.int64()).fill_null(BEFORE_ALL).to_numpy()
    hidden = np.zeros(len(events), bool)
    forgotten_event = np.isin(known.fill_null(0).to_numpy(), stones.event_ids)
    hidden |= forgotten_event & numbered
    nobody = np.full(int(named.sum()), BEFORE_ALL)  # events are judged above
    hidden[named] |= stones.hidden(
        users.filter(pa.array(named)).to_numpy(zero_copy_only=False), nobody, moments[named]
    )
    if hidden.any():
        log.info("forgotten before, not taken in", rows=int(hidden.sum()))
    return events.filter(pa.array(~hidden))

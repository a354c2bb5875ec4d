"""Writes a range chunk by chunk, keeping count of what is done, and asks the source beside it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore

from feature_repo.stores.asof import latest_rows
from feature_repo.stores.packed_store import PackedOnlineStore
from feature_repo.workspace import Workspace
from ray_jobs.materialize_check import Expected, expected_of
from ray_jobs.materialize_options import MaterializeOptions
from ray_jobs.materialize_range import Range, settled_until
from ray_jobs.materialize_source import ViewSource
from ray_jobs.materialize_write import gathered, write_all
from ray_jobs.progress import log
from ray_jobs.watermarks import EPOCH, Progress, Settled, read_progress, write_progress

TABLE_ROWS = 10_000
"""Online rows handed over at once: 32 MB with four lists of 100 in each."""


def write_range(
    workspace: Workspace,
    store: FeatureStore,
    online: PackedOnlineStore,
    source: ViewSource,
    span: Range,
    identity: str,
    options: MaterializeOptions,
) -> tuple[int, Expected, Settled]:
    """Writes the rows of a range; returns how many, what must be online then, and the settled part.

    The last two are asked of the source by a thread of their own: packing and sending rows leaves
    a core free.
    """
    chunks = _chunks(workspace, source, span, identity, options)
    with ThreadPoolExecutor(1) as beside:
        seed = (span.end - EPOCH).days
        expected = beside.submit(expected_of, source, span.end, seed)
        settled = beside.submit(source.settled, settled_until(span.end, options))
        rows = sum(
            _write_chunk(workspace, store, online, source, chunk, options.replace)
            for chunk in chunks
        )
        return rows, expected.result(), settled.result()


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Rows of (start, end], and what is done when they are written; None where nothing is kept."""

    start: datetime
    end: datetime
    done: Progress | None


def _chunks(
    workspace: Workspace,
    source: ViewSource,
    span: Range,
    identity: str,
    options: MaterializeOptions,
) -> list[Chunk]:
    """The range in chunks, from where a run of the same kind was cut off."""
    if options.replace:
        # Whole windows only: a part of one must not replace the rest.
        return [Chunk(start=span.start, end=span.end, done=None)]
    progress = Progress(
        source=source.files,
        store=identity,
        start=span.start.isoformat(),
        done=span.start.isoformat(),
    )
    earlier = read_progress(workspace, source.view.name)
    if earlier is not None and replace(earlier, done=progress.done) == progress:
        log.info(f"materialize {source.view.name}: going on", done=earlier.done)
        progress = earlier
    start = datetime.fromisoformat(progress.done)
    ends = source.chunks(start, span.end, options.chunk_rows)
    return [
        Chunk(start=first, end=end, done=replace(progress, done=end.isoformat()))
        for first, end in zip([start, *ends], ends, strict=False)
    ]


def _write_chunk(
    workspace: Workspace,
    store: FeatureStore,
    online: PackedOnlineStore,
    source: ViewSource,
    chunk: Chunk,
    replacing: bool,
) -> int:
    def write(table: pa.Table) -> int:
        if replacing:
            return _replace(store, online, source, table)
        return online.write_table(store.config, source.view, table)

    found = latest_rows(
        store.config, source.local_view, chunk.start, chunk.end, chunk_rows=TABLE_ROWS
    )
    tables = gathered((source.renamed(table) for table in found), TABLE_ROWS // 2)
    rows = write_all(tables, write, source.view.name)
    if chunk.done is not None:
        write_progress(workspace, source.view.name, chunk.done)
    return rows


def _replace(
    store: FeatureStore, online: PackedOnlineStore, source: ViewSource, table: pa.Table
) -> int:
    """Puts rows in the place of those that the source may know, and adds to the newer ones."""
    names = [field.name for field in source.view.features]
    ids = table[source.key].to_numpy()
    read = online.read_columns(store.config, [(source.view, names)], ids)
    newer = pa.array(read.event_us[source.view.name] > source.newest_us)
    rows = online.write_table(
        store.config, source.view, table.filter(pc.invert(newer)), replace=True
    )
    return rows + online.write_table(store.config, source.view, table.filter(newer))

"""Are served features what a training set would have held at the same moment?

    crescendo audit [--view VIEW] [--max-share 0] [--grace-s 5]

Takes the reads that serving kept (`feature_repo/read_log.py`), asks Feast's offline store for the
same entities at the same moments, and compares value by value. Writes nothing; the answer counts,
for each feature, values that are equal, mismatched, missing (offline has one, none was served),
extra (the reverse) and in flight (`ray_jobs/audit_in_flight.py`), and for lists the items inserted
and deleted. The command ends with exit code 1 when the unequal reads exceed the stated share.

Memory is bounded by CHUNK_READS, not by the log's length.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo import schema
from feature_repo.artifacts import parquet_files
from feature_repo.errors import ArtifactError, InputError
from feature_repo.read_log import FOLDER, READ_AT, served_reads
from feature_repo.workspace import Workspace
from ray_jobs.audit_compare import EQUAL, FeatureCounts, first_examples, outcomes
from ray_jobs.audit_in_flight import explained_by_events_in_flight, newest_row
from ray_jobs.progress import step

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

CHUNK_READS = 20_000
"""Reads recomputed at once: with sequences of 1000 in four lists 1.3 GB, of 20 ids 30 MB."""
EXAMPLES = 5
ROW = "audited_read"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    view: str | None = None
    """One view; every view with served reads when not given."""
    since: datetime | None = None
    """Only reads from this moment on."""
    until: datetime | None = None
    """Only reads before this moment. When not given, those that the event log reaches: it ends
    with the last `crescendo sequences`, and later reads show events that it does not have yet."""
    grace_s: float = 5.0
    """How long before a read an event may have been taken and still not be online, in seconds."""
    max_share: float = 0.0
    """Share of unequal reads, of a view, above which the audit fails."""

    def __post_init__(self) -> None:
        if self.grace_s < 0:
            raise InputError(f"grace_s is {self.grace_s}; expected seconds from 0")
        if not 0 <= self.max_share <= 1:
            raise InputError(f"max_share is {self.max_share}; expected a share from 0 to 1")
        for name in ("since", "until"):
            moment = getattr(self, name)
            if moment is not None and moment.tzinfo is None:
                raise InputError(f"{name} is {moment}; expected a moment with its time zone")


def audit(workspace: Workspace, options: AuditOptions) -> dict[str, Any]:
    """Returns `passed` and, per view, reads, those that came later than what can be audited,
    entities, unequal and in-flight reads, counts per feature and the first EXAMPLES unequal reads.

    Raises InputError when no read was logged, ArtifactError for a part that cannot be read.
    """
    views = [options.view] if options.view else _logged_views(workspace)
    with step("import feast"):
        from feature_repo.store import find_view, open_store
    store = open_store(workspace)
    reports = {}
    for name in views:
        view = find_view(store, name)
        with step(f"audit {name}"):
            reports[name] = _ViewAudit(store, view, options).run(served_reads(workspace, name))
    if not any(report["reads"] for report in reports.values()):
        raise InputError(
            f"{workspace.root / FOLDER} holds no read of {', '.join(views)} in the period asked "
            "for; serve with `crescendo serve --log-share 0.01` first"
        )
    return {
        "passed": all(report["unequal_share"] <= options.max_share for report in reports.values()),
        "options": {name: str(value) for name, value in asdict(options).items() if value},
        "views": reports,
    }


def _logged_views(workspace: Workspace) -> list[str]:
    folders = sorted((workspace.root / FOLDER).glob("*/"))
    views = [folder.name for folder in folders if parquet_files(folder)]
    if not views:
        raise InputError(
            f"workspace {workspace.root} has no served reads under {FOLDER}; "
            "serve with `crescendo serve --log-share 0.01` first"
        )
    return views


class _ViewAudit:
    """The running counts of one view."""

    def __init__(self, store: "FeatureStore", view: "FeatureView", options: AuditOptions) -> None:
        self._store, self._view, self._options = store, view, options
        (self._key,) = view.join_keys
        self._counts: dict[str, FeatureCounts] = {}
        self._entities: set[int] = set()
        self._reads = self._later = self._unequal = self._in_flight = 0
        self._examples: list[dict[str, Any]] = []

    def run(self, folder: Path) -> dict[str, Any]:
        started = time.monotonic()
        end = self._options.until
        if end is None and schema.SEQUENCE_LENGTH_TAG in self._view.tags:
            # Writers stamp events before they write them, so just before its end the log may lack
            # some of one writer.
            newest = newest_row(self._store, self._view)
            end = newest - timedelta(seconds=self._options.grace_s) if newest else EPOCH
        for served in _chunks(folder, self._options.since):
            audited = served if end is None else served.filter(pc.field(READ_AT) < end)
            self._later += served.num_rows - audited.num_rows
            if audited.num_rows:
                self._add(audited)
        return {
            "reads": self._reads,
            "later": self._later,
            "entities": len(self._entities),
            "unequal": self._unequal,
            "unequal_share": self._unequal / max(self._reads, 1),
            "in_flight": self._in_flight,
            "features": {name: counts.report() for name, counts in self._counts.items()},
            "examples": self._examples,
            "seconds": round(time.monotonic() - started, 1),
        }

    def _add(self, served: pa.Table) -> None:
        known = {field.name for field in self._view.features}
        features = [name for name in served.column_names if name in known]
        offline = self._recompute(served, features, timedelta())
        found = {name: outcomes(column(served, name), column(offline, name)) for name in features}
        unequal = np.any([values != EQUAL for values in found.values()], axis=0)
        explained = np.zeros(len(unequal), dtype=bool)
        if unequal.any():
            rows = np.flatnonzero(unequal)
            doubtful = served.take(pa.array(rows))
            grace = timedelta(seconds=self._options.grace_s)
            names = self._log_features(features)
            before = self._recompute(doubtful, names, grace)
            explained[rows] = explained_by_events_in_flight(
                self._store, self._view, doubtful, before, features, grace
            )
        for name in features:
            counts = self._counts.setdefault(name, FeatureCounts())
            counts.add(column(served, name), column(offline, name), found[name], explained)
        wrong = unequal & ~explained
        self._reads += served.num_rows
        self._entities.update(served[self._key].unique().to_pylist())
        self._unequal += int(wrong.sum())
        self._in_flight += int(explained.sum())
        room = EXAMPLES - len(self._examples)
        self._examples += first_examples(self._key, features, served, offline, wrong, room)

    def _log_features(self, features: list[str]) -> list[str]:
        """Windows are put together from all parallel lists, whichever of them were served."""
        is_log = schema.SEQUENCE_LENGTH_TAG in self._view.tags
        return list(schema.SEQUENCE_COLUMNS) if is_log else features

    def _recompute(self, served: pa.Table, features: list[str], before: timedelta) -> pa.Table:
        """The features as offline has them `before` each read, one row a read, in their order."""
        moments = pc.subtract(served[READ_AT], pa.scalar(before, pa.duration("us")))
        entity_rows = pa.table(
            {
                ROW: np.arange(served.num_rows),
                self._key: served[self._key],
                schema.EVENT_TIMESTAMP: moments,
            }
        ).to_pandas()
        references = [f"{self._view.name}:{name}" for name in features]
        job = self._store.get_historical_features(entity_df=entity_rows, features=references)
        table = job.to_arrow().sort_by(ROW)
        if table.num_rows != served.num_rows:
            raise ArtifactError(
                f"the offline store answered {served.num_rows} rows of {self._view.name} with "
                f"{table.num_rows}; set offline_store.type in feature_store.yaml to "
                "feature_repo.stores.asof.AsofOfflineStore"
            )
        columns = {
            self._key: served[self._key],
            READ_AT: served[READ_AT],
            schema.EVENT_TIMESTAMP: served[schema.EVENT_TIMESTAMP],
        }
        for name in features:
            kind = served.schema.field(name).type if name in served.column_names else None
            columns[name] = table[name].cast(kind) if kind else table[name]
        return pa.table(columns)


def column(table: pa.Table, name: str) -> pa.Array:
    """A column as one array."""
    values = table[name].combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # of no chunk at all
        return pa.array([], values.type)
    return values


def _chunks(folder: Path, since: datetime | None) -> Iterator[pa.Table]:
    """Served reads from a moment on, up to CHUNK_READS at once, all with the same columns."""
    held: list[pa.Table] = []
    for part in parquet_files(folder):
        for batch in _batches(part):
            table = pa.Table.from_batches([batch])
            if since is not None:
                table = table.filter(pc.field(READ_AT) >= since)
            rows = sum(earlier.num_rows for earlier in held)
            # Features may have been added since: parts of other columns are compared apart.
            fits = not held or held[0].schema.equals(table.schema)
            if held and (not fits or rows + table.num_rows > CHUNK_READS):
                yield pa.concat_tables(held)
                held = []
            if table.num_rows:
                held.append(table)
    if held:
        yield pa.concat_tables(held)


def _batches(part: Path) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(part) as file:
            yield from file.iter_batches(CHUNK_READS)
    except FileNotFoundError:
        return  # the log is bounded: its writer has just dropped its oldest part
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(
            f"served reads {part} cannot be read ({error}); remove that file"
        ) from error

"""Is online what the source says? Every entity counted, a sample of values read back and compared.

Shape suffixes: E entities of the source, S sampled ones, X online rows that the source lacks.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
from feast import FeatureStore

from feature_repo import schema
from feature_repo.errors import ArtifactError
from feature_repo.stores.packed_columns import Column, Columns, column_from_arrow
from feature_repo.stores.packed_store import PackedOnlineStore
from ray_jobs.materialize_source import ViewSource

SAMPLED = 500
"""Entities read back and compared after each run."""
NAMED = 5
"""Ids that an error names."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """The outcome of a check that found nothing wrong."""

    entities: int
    """Distinct entities of the source."""
    online: int
    """Rows of the online store."""
    vanished_X: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Ids that are online and not in the source, and not newer than it."""
    newer: int = 0
    """Ids that are online and not in the source because they came after it was made."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What must be online, as the source says it."""

    ids_E: np.ndarray
    """Every entity, rising."""
    sample: pa.Table
    """The rows of some of them: key, `event_timestamp`, features."""


def expected_of(source: ViewSource, until: datetime, seed: int) -> Expected:
    """What must be online of a source at that moment; the sample is drawn with `seed`."""
    ids_E = source.entities(until)
    count = min(SAMPLED, len(ids_E))
    random = np.random.default_rng(seed)
    ids_S = np.sort(random.choice(ids_E, count, replace=False)) if count else ids_E
    return Expected(ids_E=ids_E, sample=source.newest(ids_S, until))


def check(
    store: FeatureStore, online: PackedOnlineStore, source: ViewSource, expected: Expected
) -> Check:
    """Compares the online rows of a view with what must be there.

    Raises ArtifactError, with the numbers, where an entity is missing or a value differs.
    """
    ids_E = expected.ids_E
    seen_E = np.zeros(len(ids_E), dtype=bool)
    extra: list[np.ndarray] = []
    for ids in online.entity_ids(store.config, source.view):
        at = np.searchsorted(ids_E, ids)
        known = np.zeros(len(ids), dtype=bool)
        inside = at < len(ids_E)
        known[inside] = ids_E[at[inside]] == ids[inside]
        seen_E[at[known]] = True
        extra.append(ids[~known])
    extra_X = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *extra]))
    rows = int(seen_E.sum()) + len(extra_X)
    if not seen_E.all():
        missing = ids_E[~seen_E]
        raise ArtifactError(
            f"view {source.view.name}: {len(missing)} of the source's {len(ids_E)} entities are "
            f"not online, which holds {rows} rows (missing: {_some(missing)}); "
            "run `crescendo materialize --full`"
        )
    _compare(store, online, source, expected.sample)
    newer_X = _newer_than_source(store, online, source, extra_X)
    return Check(
        entities=len(ids_E),
        online=rows,
        vanished_X=extra_X[~newer_X],
        newer=int(newer_X.sum()),
    )


def _newer_than_source(
    store: FeatureStore, online: PackedOnlineStore, source: ViewSource, ids_X: np.ndarray
) -> np.ndarray:
    """Of rows that the source lacks, those that were pushed after it was made (X,)."""
    if len(ids_X) == 0 or source.view.stream_source is None:
        return np.zeros(len(ids_X), dtype=bool)
    read = _read(store, online, source, ids_X)
    return read.event_us[source.view.name] > source.newest_us


def _compare(
    store: FeatureStore, online: PackedOnlineStore, source: ViewSource, expected: pa.Table
) -> None:
    ids_S = expected[source.key].to_numpy()
    read = _read(store, online, source, ids_S)
    expected_us = expected[schema.EVENT_TIMESTAMP].cast(pa.int64()).to_numpy()
    online_us = read.event_us[source.view.name]
    columns: dict[str, tuple[Column, Column]] = {}
    for feature in source.view.features:
        got = read[f"{source.view.name}:{feature.name}"]
        columns[feature.name] = (column_from_arrow(got.kind, expected[feature.name]), got)
    if all(_identical(want, got) for want, got in columns.values()):
        return  # nearly always; what follows is slow, item by item
    values = {name: (want.to_pylist(), got.to_pylist()) for name, (want, got) in columns.items()}
    for row, entity in enumerate(ids_S):
        if online_us[row] > expected_us[row] and source.length is None:
            continue  # pushed since the source was made: newer is right
        want_row = {name: want[row] for name, (want, _) in values.items()}
        got_row = {name: got[row] for name, (_, got) in values.items()}
        if want_row == got_row:
            continue
        if source.length is not None:
            want_row = _merged(want_row, got_row, source.length)
        for name, want_value in want_row.items():
            if not _same(want_value, got_row[name]):
                raise ArtifactError(
                    f"after materializing {source.view.name}, {source.key} {entity} has "
                    f"{name}={got_row[name]!r} online but {want_value!r} in its source; "
                    "run `crescendo materialize --full`"
                )


def _merged(
    source_row: dict[str, Any], online_row: dict[str, Any], length: int
) -> dict[str, list[Any]]:
    """Last N of both windows together: what is online when nothing of the source is missing.

    Listens that were pushed since the source was made are online alone, and are right there.
    """
    listens: dict[int, tuple[tuple[int, int], dict[str, Any]]] = {}
    for row in (source_row, online_row):
        lists = [row[name] or [] for name in source_row]
        for listen in zip(*lists, strict=True):
            values = dict(zip(source_row, listen, strict=True))
            order = (values[schema.SEQUENCE_TIMESTAMPS], values[schema.SEQUENCE_EVENT_IDS])
            listens.setdefault(values[schema.SEQUENCE_EVENT_IDS], (order, values))
    last = sorted(listens.values(), key=lambda listen: listen[0])[-length:]
    return {name: [values[name] for _, values in last] for name in source_row}


def _read(
    store: FeatureStore, online: PackedOnlineStore, source: ViewSource, ids: np.ndarray
) -> Columns:
    names = [field.name for field in source.view.features]
    return online.read_columns(store.config, [(source.view, names)], ids)


def _identical(want: Column, got: Column) -> bool:
    """Whether all rows of both are the same bytes."""
    return all(
        np.array_equal(a, b) if a is not None and b is not None else a is b
        for a, b in (
            (want.valid_N, got.valid_N),
            (want.offsets_N1, got.offsets_N1),
            (want.item_offsets, got.item_offsets),
            (want.values, got.values),
        )
    )


def _same(want: Any, got: Any) -> bool:
    """Equal, where NaN equals NaN."""
    if isinstance(want, list) and isinstance(got, list):
        return len(want) == len(got) and all(map(_same, want, got))
    return bool(want == got or (want != want and got != got))


def _some(ids: np.ndarray) -> str:
    named = ", ".join(str(entity) for entity in ids[:NAMED])
    return named if len(ids) <= NAMED else f"{named}, ..."

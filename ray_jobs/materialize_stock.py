"""Materialization into one of Feast's own online stores: by Feast's own engine, and said openly.

Feast writes the newest row of each entity over whatever is there. So the whole source is read
every time, in one range: no part of it can then put an older row over a newer one of the source.
What a stock store lacks - counting, merging of pushed listens, keeping a newer pushed value on
SQLite - nothing here can give it; `packed_sqlite` and `packed_redis` have it.
"""

import sys
from contextlib import redirect_stdout
from datetime import datetime

import numpy as np
from feast import FeatureStore

from feature_repo.errors import ArtifactError
from feature_repo.store import read_online
from ray_jobs.materialize_source import ViewSource
from ray_jobs.progress import log
from ray_jobs.watermarks import EPOCH

SAMPLED = 500
"""Entities read back and compared."""


def materialize_stock(store: FeatureStore, source: ViewSource, as_of: datetime) -> int:
    """The whole source up to `as_of`; returns how many entities that were.

    Raises ArtifactError if a value read back differs.
    """
    view = source.view
    log.warning(
        f"materialize {view.name}: {store.config.online_store.type} is one of Feast's own online "
        "stores: written by Feast's engine, whole; a sample is compared, nothing counted"
    )
    ids_E = source.entities(as_of)
    if len(ids_E):
        with redirect_stdout(sys.stderr):  # Feast prints; standard output is a command's answer
            store.materialize(start_date=EPOCH, end_date=as_of, feature_views=[view.name])
    sample = ids_E[:: max(1, len(ids_E) // SAMPLED)]
    _compare(store, source, sample, as_of)
    return len(ids_E)


def _compare(store: FeatureStore, source: ViewSource, ids: np.ndarray, as_of: datetime) -> None:
    names = [field.name for field in source.view.features]
    references = [f"{source.view.name}:{name}" for name in names]
    expected = source.newest(ids, as_of)
    online = read_online(store, source.key, ids.tolist(), references)
    for name in names:
        wanted = expected[name].to_pylist()
        for entity, want, got in zip(ids.tolist(), wanted, online[name], strict=True):
            # Redis and SQLite spell an empty list as nothing at all; it means the same.
            if (None if want == [] else want) != (None if got == [] else got):
                raise ArtifactError(
                    f"after materializing {source.view.name}, {source.key} {entity} has "
                    f"{name}={got!r} online but {want!r} in its source; "
                    "run `crescendo materialize` again"
                )

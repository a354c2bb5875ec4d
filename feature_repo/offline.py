"""Point-in-time reads from the offline store, streamed.

A sequence view is built from its event log at the moment that is asked for, which only our own
offline store does (feature_repo/stores/asof.py). Plain views may lie in any.
"""

from collections.abc import Iterator, Sequence

import pandas as pd
import pyarrow as pa
from feast import FeatureStore

from feature_repo import schema
from feature_repo.errors import InputError
from feature_repo.store import find_view
from feature_repo.stores.asof import TYPE, AsofOfflineStoreConfig
from feature_repo.stores.asof_job import AsofRetrievalJob


def point_in_time(
    store: FeatureStore,
    entity_rows: pd.DataFrame,
    view: str,
    features: Sequence[str],
) -> Iterator[pa.Table]:
    """Features as they were at each entity row's `event_timestamp`, a part of the rows a table.

    Every entity row comes back exactly once, in its order, with all of its own columns; what no
    row of the view covers is null. Raises InputError where the offline store cannot build the view.
    """
    feature_view = find_view(store, view)
    configured = store.config.offline_store
    ours = isinstance(configured, AsofOfflineStoreConfig)
    if schema.SEQUENCE_LENGTH_TAG in feature_view.tags and not ours:
        raise InputError(
            f"view {view} is built from its event log, which offline_store {configured.type} "
            f"cannot do; set offline_store.type in {store.repo_path}/feature_store.yaml to {TYPE}"
        )
    # Feast writes into the frame it is given.
    job = store.get_historical_features(
        entity_df=entity_rows.copy(), features=[f"{view}:{name}" for name in features]
    )
    columns = [*entity_rows.columns, *features]
    if not isinstance(job, AsofRetrievalJob):
        yield job.to_arrow().select(columns)
        return
    for table in job.to_arrow_batches():
        yield table.select(columns)

"""Point-in-time reads from the offline store, in chunks that bound their memory.

Feast's DuckDB plan joins each entity row with every row of that entity before it keeps the
newest, carrying the list columns: 60,000 impressions of users with 120 rows each are 7 million
joined rows. Chunks are cut by that product.
"""

from collections.abc import Iterator, Sequence

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
from feast import FeatureStore

from feature_repo import schema
from feature_repo.store import find_view

JOINED_ROWS_PER_CHUNK = 2_000_000
"""About 0.5 GB with a list of 20 ids in each row."""


def point_in_time(
    store: FeatureStore,
    entity_rows: pd.DataFrame,
    view: str,
    features: Sequence[str],
) -> Iterator[pa.Table]:
    """Features as they were at each entity row's `event_timestamp`, one table a chunk.

    Every entity row comes back exactly once, in any order, with all of its own columns; what no
    row of the view covers is null.
    """
    feature_view = find_view(store, view)
    (key,) = feature_view.join_keys
    source = feature_view.batch_source.path
    rows_per_entity = duckdb.sql(f"SELECT {key}, count(*) AS n FROM '{source}' GROUP BY ALL").df()
    counts = entity_rows[key].map(rows_per_entity.set_index(key)["n"]).fillna(0).to_numpy()
    chunk_of_row = (np.cumsum(counts) // JOINED_ROWS_PER_CHUNK).astype(np.int64)
    references = [f"{view}:{name}" for name in features]
    for _, chunk in entity_rows.groupby(chunk_of_row, sort=True):
        # Feast parses timestamps in microseconds; it writes into the frame it is given.
        frame = chunk.copy()
        frame[schema.EVENT_TIMESTAMP] = frame[schema.EVENT_TIMESTAMP].astype("datetime64[us, UTC]")
        job = store.get_historical_features(entity_df=frame, features=references)
        yield job.to_arrow().select([*entity_rows.columns, *features])

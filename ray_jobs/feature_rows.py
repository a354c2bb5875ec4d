"""Rows joined with what the feature store knew at their moment: the inputs of every ranker.

The user's sequence always; with feature groups (`number_features.py`) one column of numbers more,
which serving fills by the same function from the same features.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore

from feature_repo import schema
from feature_repo.offline import point_in_time
from models.number_rows import number_rows
from ray_jobs.number_features import NUMBERS, STATS_VIEWS, number_names, sequence_features


def join_features(
    store: FeatureStore, rows: pd.DataFrame, groups: Sequence[str]
) -> Iterator[pa.Table]:
    """Feast's point-in-time joins: every row once, in its order, a part of them a table.

    The rows' own columns, `seq_track_ids` (null: an unknown user) and, with groups, `numbers`.
    """
    joins = [point_in_time(store, rows, schema.USER_SEQUENCE, sequence_features(groups))]
    for group, view in STATS_VIEWS.items():
        if group in groups:
            keys = rows[[f"{group}_id", schema.EVENT_TIMESTAMP]]
            joins.append(point_in_time(store, keys, view, schema.stats_columns(group)))
    for sequences, *stats in _side_by_side(joins):
        joined = sequences.select([*rows.columns, schema.SEQUENCE_TRACK_IDS])
        if groups:
            joined = joined.append_column(NUMBERS, _numbers(sequences, stats, groups))
        yield joined


def _numbers(sequences: pa.Table, stats: Sequence[pa.Table], groups: Sequence[str]) -> pa.Array:
    names = number_names(groups)
    lengths = pc.list_value_length(sequences[schema.SEQUENCE_TRACK_IDS])
    lengths_B = pc.fill_null(lengths, 0).to_numpy().astype(np.int64)
    last_us_B = np.zeros(len(lengths_B), dtype=np.int64)
    if schema.SEQUENCE_TIMESTAMPS in sequences.column_names:
        listened_us = sequences[schema.SEQUENCE_TIMESTAMPS].combine_chunks().flatten().to_numpy()
        last_us_B[lengths_B > 0] = listened_us[np.cumsum(lengths_B)[lengths_B > 0] - 1]
    moments = sequences[schema.EVENT_TIMESTAMP].cast(schema.TIMESTAMP).cast(pa.int64())
    numbers_BN = number_rows(
        names,
        {name: table[name].to_numpy() for table in stats for name in table.column_names},
        moments_us_B=moments.to_numpy(),
        history_lengths_B=lengths_B,
        last_listens_us_B=last_us_B,
    )
    return pa.FixedSizeListArray.from_arrays(pa.array(numbers_BN.reshape(-1)), len(names))


def _side_by_side(streams: Sequence[Iterable[pa.Table]]) -> Iterator[list[pa.Table]]:
    """Streams of the same rows, cut at different places: parts of equal rows of each.

    RuntimeError where one has more rows than another.
    """
    iterators = [iter(stream) for stream in streams]
    held = [next(iterator) for iterator in iterators]
    while held:
        rows = min(table.num_rows for table in held)
        yield [table.slice(0, rows) for table in held]
        following = [
            table.slice(rows)
            if table.num_rows > rows
            else next((part for part in iterator if part.num_rows), None)
            for table, iterator in zip(held, iterators, strict=True)
        ]
        held = [table for table in following if table is not None]
        if held and len(held) < len(iterators):
            raise RuntimeError("the point-in-time joins of one set of rows differ in their number")

"""The IDs that a generation has published, read back and copied on: the other side of `ids_table`.

Shape suffixes: P tracks with an ID, L codes of an ID.
"""

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from feature_repo import schema

COPY_ROWS = 65_536
"""Rows held at once while they are copied."""


def published_ids(path: Path, family: str) -> tuple[np.ndarray, Tensor]:
    """Track ids (P,), rising, and codes (P, L) int64 of the tracks with an ID of the family."""
    column = schema.sid_column(family)
    table = pq.read_table(path, columns=[schema.TRACK_ID, column])
    table = table.filter(pc.greater(pc.list_value_length(table[column]), 0))
    table = table.sort_by(schema.TRACK_ID)
    codes = table[column].combine_chunks().flatten().to_numpy()
    rows_PL = torch.tensor(codes).reshape(table.num_rows, -1 if table.num_rows else 0)
    return table[schema.TRACK_ID].to_numpy(), rows_PL


def copy_ids(published: pq.ParquetFile, writer: pq.ParquetWriter) -> None:
    """Writes every published row as it is, some at a time."""
    for batch in published.iter_batches(COPY_ROWS):
        writer.write_batch(batch)

"""The table of a generation: each track's semantic IDs, one list column a family."""

import numpy as np
import pyarrow as pa
from torch import Tensor

from feature_repo import schema

IDS_FILE = "ids.parquet"


def ids_table(catalogue: np.ndarray, codes: dict[str, tuple[np.ndarray, Tensor]]) -> pa.Table:
    """`track_id`, and one list<int64> column a family: empty where the modality is missing."""
    columns: dict[str, pa.Array] = {schema.TRACK_ID: pa.array(catalogue)}
    for family, (track_ids, codes_NL) in codes.items():
        lengths = np.zeros(len(catalogue), dtype=np.int32)
        lengths[np.searchsorted(catalogue, track_ids)] = codes_NL.shape[1]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        columns[schema.sid_column(family)] = pa.ListArray.from_arrays(
            pa.array(offsets), pa.array(codes_NL.flatten().numpy())
        )
    return pa.table(columns)

"""Validation during training: every worker scores its share, the first one has the metrics.

Only scores travel, 4 bytes a row, and only to the first worker, which alone reads the labels: its
AUC and logloss are those of all rows at once, and the others are told the two numbers.

Shape suffixes: S rows of one worker's share, N rows of the part.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from models.ranking_metrics import auc, logloss
from ray_jobs.training_stream import ItemSide, score_rows
from ray_jobs.worker_group import WorkerGroup


def validate(
    model: torch.nn.Module, side: ItemSide, path: Path, group: WorkerGroup
) -> dict[str, float]:
    """`validation_auc` and `validation_logloss` of the part in `path`, equal on every worker.

    AUC is NaN where all rows have one label.
    """
    model.eval()
    total = pq.read_metadata(path).num_rows
    share = -(-total // group.world_size)
    start = min(total, group.rank * share)
    scores_S = torch.zeros(share)
    done = 0
    for rows in _row_range(path, start, min(total, start + share)):
        scores_S[done : done + rows.num_rows] = torch.from_numpy(score_rows(model, side, rows))
        done += rows.num_rows
    scores_N = group.gather_to_first(scores_S)
    found = torch.zeros(2, dtype=torch.float64)
    if scores_N is not None:
        labels_N = pq.read_table(path, columns=["label"])["label"].to_numpy()
        scores = scores_N[:total].numpy()
        found = torch.tensor([auc(labels_N, scores), logloss(labels_N, scores)]).double()
    found_auc, found_logloss = group.from_first(found).tolist()
    return {"validation_auc": found_auc, "validation_logloss": found_logloss}


def _row_range(path: Path, start: int, end: int) -> Iterator[pa.Table]:
    """Rows start to end of a parquet file, one row group in memory at a time."""
    with pq.ParquetFile(path) as file:
        first = 0
        for number in range(file.num_row_groups):
            rows = file.metadata.row_group(number).num_rows
            low, high = max(start, first), min(end, first + rows)
            if low < high:
                yield file.read_row_group(number).slice(low - first, high - low)
            first += rows

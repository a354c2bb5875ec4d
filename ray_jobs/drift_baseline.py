"""What a model saw and answered on its test part: `models/<model_id>/drift_baseline.safetensors`.

Part of `crescendo train`. Serving compares what it sees and answers with it (`serving/drift.py`).
Of the test part, because no row is newer and none of it was trained on or chosen by.
"""

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo import schema
from feature_repo.artifacts import Manifest

SAMPLED_ROWS = 16_384
"""Most rows, drawn evenly, whose codes are counted: a history has fifty."""


def write_drift_baseline(model_folder: Path, training_folder: Path, manifest: Manifest) -> None:
    """Counts the scores of `test_scores.parquet`, and the first codes of candidates and listens."""
    from safetensors.numpy import save_file

    from models.batch import ItemTable
    from models.stability import BASELINE_FILE, code_counts, score_counts
    from ray_jobs.training_stream import read_item_side

    config = manifest.options["ranker"]
    items = read_item_side(training_folder, config["history_length"]).items
    first_codes = ItemTable(track_ids_I=items.track_ids_I, codes_IFL=items.codes_IFL[:, :, :1])
    scores_N = pq.read_table(model_folder / "test_scores.parquet")["score"].to_numpy()
    columns = [schema.TRACK_ID, schema.SEQUENCE_TRACK_IDS]
    rows = pq.read_table(training_folder / "test.parquet", columns=columns)
    step = max(1, -(-rows.num_rows // SAMPLED_ROWS))
    rows = rows.take(list(range(0, rows.num_rows, step)))
    listens = pc.list_flatten(rows[schema.SEQUENCE_TRACK_IDS])
    baseline = {"score_counts": score_counts(scores_N)}
    for name, track_ids in (("candidate_codes", rows[schema.TRACK_ID]), ("history_codes", listens)):
        codes_NF = first_codes.codes(track_ids.to_numpy())[..., 0]
        baseline[name] = code_counts(codes_NF, config["codes"])
    save_file(baseline, model_folder / BASELINE_FILE)

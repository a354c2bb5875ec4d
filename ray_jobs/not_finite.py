"""A loss that became NaN or infinite: the batch is saved, and the error says what to try.

Writes `not_finite.parquet` into the run's folder: the rows of the batch, as in the training set.
They go with that folder, so that no user's rows outlive it.
"""

import json
from pathlib import Path

import pyarrow.parquet as pq

from feature_repo.errors import InputError
from ray_jobs.run_folder import NOT_FINITE_FILE, NOT_FINITE_ROWS_FILE
from ray_jobs.training_stream import StreamPlace, global_batches


def raise_if_not_finite(
    run_folder: Path, training_folder: Path, *, seed: int, batch_size: int, learning_rate: float
) -> None:
    """InputError if the workers stopped because of a loss; the file of its rows is written first.

    It names the step: the batches before it had finite losses, in this epoch and all earlier ones.
    """
    path = run_folder / NOT_FINITE_FILE
    if not path.exists():
        return
    found = json.loads(path.read_text())
    path.unlink()  # the next run of this command decides anew
    place = StreamPlace(
        seed=seed,
        epoch=found["epoch"],
        batch_size=batch_size,
        rank=0,
        world_size=1,
        first_batch=found["batch"],
    )
    rows, files = next(global_batches(training_folder, place))
    saved = run_folder / NOT_FINITE_ROWS_FILE
    pq.write_table(rows, saved)
    raise InputError(
        f"the training loss became {found['loss']} in epoch {found['epoch']}, step "
        f"{found['batch']}; its {rows.num_rows} rows, from {' and '.join(files)} of "
        f"{training_folder.name}, are in {saved}. Run `crescendo train` with a lower "
        f"--learning-rate than {learning_rate:g}; if it stops at the same rows, look at their "
        "features"
    )

"""Collaborative embeddings: SASRec on the feature store's sequences, with Ray Train.

    crescendo sequences --length 50 && crescendo publish && crescendo sasrec --length 50

Reads a next-item set (`next_item_set.py`) and writes `embeddings/collaborative/<encoder_id>/` as
`embed` writes one: a row a track, with SASRec's item vector or the reason why it has none (nobody
listened to it in the training part). So `quantize --modalities collaborative,text,audio` and
whoever else reads embeddings take it as a modality, and `crescendo publish` makes the view
`track_collaborative` of it. The manifest holds HR@k and nDCG@k of SASRec and of the most-popular
list, by full ranking of the test targets with the history masked.

What these vectors depend on is the event log, not a column of the tracks: when the log or the
catalogue grows they are older, and stay valid, as a trained ranker does. A reader takes those of
the catalogue's tracks; one that came later has none until the next `crescendo sasrec`. Vectors of
two runs cannot be compared with each other: `encoder_id` tells them apart.

They are learned from the training part alone, so that a model that takes them as input can be
evaluated on the same targets. Chosen by the validation targets, though.

A run that was killed is found by the same command, with any number of workers, and goes on from its
newest checkpoint. A run that has ended is not trained again.
"""

import json
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.artifacts import (
    MANIFEST,
    Manifest,
    content_id,
    is_whole,
    newest,
    read_manifest,
    write_artifact,
    write_json,
)
from feature_repo.errors import InputError
from feature_repo.schema import COLLABORATIVE
from feature_repo.workspace import Workspace
from models.most_popular import most_popular_metrics
from models.next_items import NextItems
from models.sasrec_training import SasRecOptions
from ray_jobs.collaborative_view import MADE_BY
from ray_jobs.embed_folder import KIND, row_schema
from ray_jobs.encoders.inputs import INPUT_HASH
from ray_jobs.encoders.pipeline import ERROR, OK
from ray_jobs.next_item_fit import fit_next_items
from ray_jobs.next_item_set import trainable_set
from ray_jobs.progress import step
from ray_jobs.run_folder import CURVE_FILE, FINISHED_FILE, json_lines, run_folder

UNHEARD = "no listen in the training part"


@dataclass(frozen=True, kw_only=True)
class SasRecRunOptions(SasRecOptions):
    """What is trained, and how: the latter does not change which vectors come out."""

    workers: int = 1
    """Of Ray Train; 0: none, the driver trains (`worker_fit.py`)."""
    gpu: bool | None = None
    """One CUDA device a worker; by default where there is one for each."""
    checkpoint_every_s: float = 60.0
    """Seconds between two checkpoints at least; longer where they take over 1% of the time."""

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            raise InputError(str(error)) from error
        if not 0 <= self.workers <= self.batch_size:
            raise InputError(
                f"workers must be 0 to the batch_size {self.batch_size}, got {self.workers}"
            )
        if not self.checkpoint_every_s >= 0:
            raise InputError(
                f"checkpoint_every_s must be at least 0, got {self.checkpoint_every_s}"
            )

    def what(self) -> dict[str, Any]:
        """The options that decide which vectors come out."""
        return {field.name: getattr(self, field.name) for field in fields(SasRecOptions)}


def sasrec(workspace: Workspace, options: SasRecRunOptions) -> dict[str, Any]:
    """Trains, evaluates and writes the vectors.

    Returns `encoder_id`, `next_item_set`, `tracks`, `ok` (those with a vector), `dim`, `epochs`,
    `seconds`, `users_per_second`, and of both lists `hr@10`, `ndcg@10` and the others.
    """
    made, data = trainable_set(workspace, options.length)
    encoder_id = content_id(MADE_BY, made.id, options.what())
    folder = workspace.embeddings(COLLABORATIVE, encoder_id)
    if is_whole(folder, kind=KIND, made_by=MADE_BY):
        _make_newest(folder)
    else:
        with run_folder(workspace.models, encoder_id) as run:
            _fit(workspace, run, made.id, options)
            _write_vectors(folder, run, made, data, options)
    manifest = read_manifest(folder, kind=KIND, made_by=MADE_BY)
    return {
        "encoder_id": encoder_id,
        "next_item_set": made.id,
        **manifest.rows,
        "dim": manifest.info["dim"],
        **{name: manifest.info[name] for name in ("epochs", "seconds", "users_per_second")},
        "sasrec": manifest.info["metrics"]["sasrec"],
        "most_popular": manifest.info["metrics"]["most_popular"],
    }


def _fit(workspace: Workspace, run: Path, set_id: str, options: SasRecRunOptions) -> None:
    from ray_jobs.sasrec_loop import sasrec_loop

    with step("sasrec", next_item_set=set_id):
        fit_next_items(
            workspace,
            run,
            sasrec_loop,
            {"options": options.what(), "checkpoint_every_s": options.checkpoint_every_s},
            name=f"sasrec seed {options.seed}",
            set_id=set_id,
            workers=options.workers,
            gpu=options.gpu,
        )


def _write_vectors(
    folder: Path, run: Path, made: Manifest, data: NextItems, options: SasRecRunOptions
) -> None:
    from safetensors.numpy import load_file

    from ray_jobs.checkpoints import best_file

    finished = json.loads((run / FINISHED_FILE).read_text())
    curve = json_lines(run / CURVE_FILE)
    table_ID = load_file(best_file(run, finished["best_epoch"]))["item.weight"]
    seconds = sum(line["seconds"] for line in curve)
    manifest = Manifest(
        kind=KIND,
        id=folder.name,
        parents={"next_item_set": made.id, "events": made.parents["events"]},
        options=options.what(),
        info={
            "modality": COLLABORATIVE,
            "encoder": MADE_BY,
            "columns": [],  # of the tracks: it depends on none
            "dim": options.width,
            "known_until": made.info["last_listen"],
            "epochs": len(curve),
            "best_epoch": finished["best_epoch"],
            "seconds": round(seconds, 3),
            "users_per_second": round(len(curve) * int((data.lengths_U >= 2).sum()) / seconds, 1),
            "metrics": {
                "sasrec": finished["test"],
                "most_popular": most_popular_metrics(data, "test"),
            },
            "curve": curve,
        },
    )
    heard_N = data.counts_I[1:] > 0
    with write_artifact(folder, manifest) as partial:
        rows = _rows(data.track_ids_I[1:], table_ID[1:], heard_N)
        pq.write_table(rows, partial / "part-00001.parquet")
        ok = int(heard_N.sum())
        manifest.rows = {"tracks": len(rows), "ok": ok, "errors": len(rows) - ok}


def _rows(track_ids_N: np.ndarray, vectors_ND: np.ndarray, heard_N: np.ndarray) -> pa.Table:
    """Embedding rows. The hash of an input, which a track does not have here, is 0."""
    dim = vectors_ND.shape[1]
    vectors = pa.FixedSizeListArray.from_arrays(
        vectors_ND.astype(np.float32).ravel(), dim, mask=pa.array(~heard_N)
    )
    columns = {
        "track_id": pa.array(track_ids_N),
        "vector": vectors,
        "status": pa.array(np.where(heard_N, OK, ERROR)),
        "error": pa.array([None if heard else UNHEARD for heard in heard_N], pa.string()),
        INPUT_HASH: pa.array(np.zeros(len(track_ids_N), np.int64)),
    }
    return pa.table(columns, schema=row_schema(dim))


def _make_newest(folder: Path) -> None:
    """Readers take the encoder that was run last, as after `embed` with nothing to do."""
    manifest = read_manifest(folder, kind=KIND, made_by=MADE_BY)
    if newest(folder.parent, kind=KIND, made_by=MADE_BY).id != folder.name:
        manifest.created_at = datetime.now(UTC).isoformat()
        write_json(folder / MANIFEST, asdict(manifest))

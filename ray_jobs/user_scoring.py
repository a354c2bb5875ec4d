"""The Ray Data pipeline of `score-users`: users' histories in, their candidates out.

One actor holds one copy of the model, on a GPU where the cluster has any: histories of a batch lie
after each other without padding, one pass gives every user's vector, and the best items of all are
found exactly, in chunks (`models.top_items`). A user who cannot be scored is a row with the
reason: Ray's own ways to survive an error drop the whole block with it.

Shapes: U users of a batch, P listens of all of them, T of them that the model reads, I rows of
items, K candidates, D width.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from feature_repo import schema
from feature_repo.mme_sid_reader import read_mme_sid
from feature_repo.workspace import Workspace
from models.mme_sid import build
from models.next_items import last_rows
from models.top_items import top_items
from ray_jobs.ray_data import ray_data
from ray_jobs.user_histories import HISTORY_HASH, ROWS

ACTOR_CPUS = 0.4
"""Logical CPUs of an actor: whole ones wait for each other for ever on a small machine."""
WAVE_USERS = 500_000
"""Handed to Ray at a time: 100 MB of histories of 50. Each wave starts its actors anew, which costs
reading the model: minutes for 16 GB, against twelve of scoring."""
ERROR = "error"
CANDIDATES = pa.schema(
    [
        pa.field(schema.USER_ID, pa.int64(), nullable=False),
        pa.field(schema.EVENT_TIMESTAMP, schema.TIMESTAMP, nullable=False),
        pa.field(schema.CANDIDATE_TRACK_IDS, pa.list_(pa.int64()), nullable=False),
        pa.field(schema.CANDIDATE_SCORES, pa.list_(pa.float32()), nullable=False),
        pa.field(schema.CANDIDATE_MODEL, pa.string(), nullable=False),
        pa.field(schema.CANDIDATES_MADE_AT, pa.int64(), nullable=False),
        pa.field(ERROR, pa.string()),
        pa.field(HISTORY_HASH, pa.int64(), nullable=False),
    ]
)
"""A row a user, with empty lists where `error` says why."""
NO_HISTORY = "no listen of a track that the model knows"
NOT_FINITE = "not finite: the user's vector holds NaN or infinity"


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What an actor is told."""

    root: Path
    """Of the workspace, absolute: every node has to have it."""
    model_id: str
    top: int
    made_at: datetime


def scored_blocks(
    histories: Iterable[pa.Table], scoring: Scoring, *, actors: int, batch_size: int
) -> Iterator[pa.Table]:
    """Tables of CANDIDATES for all rows of `histories`, in the order of their completion."""
    import ray

    data = ray_data()
    gpus = int(ray.cluster_resources().get("GPU", 0))
    for wave in _waves(histories):
        batches = range(0, wave.num_rows, batch_size)
        # From memory, not by read_parquet, whose tasks start a worker on every logical CPU and
        # take five seconds on two cores before the first row moves.
        dataset = data.from_arrow([wave.slice(at, batch_size) for at in batches])
        yield from dataset.map_batches(
            ScoreActor,
            fn_constructor_args=(scoring,),
            batch_format="pyarrow",
            batch_size=batch_size,
            compute=data.ActorPoolStrategy(size=min(gpus or actors, len(batches))),
            num_cpus=ACTOR_CPUS,
            num_gpus=1 if gpus else 0,
        ).iter_batches(batch_size=None, batch_format="pyarrow")


def _waves(histories: Iterable[pa.Table]) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    for table in histories:
        if table.num_rows:
            held.append(table)
        if sum(map(len, held)) >= WAVE_USERS:
            yield pa.concat_tables(held).combine_chunks()
            held = []
    if held:
        yield pa.concat_tables(held).combine_chunks()


class ScoreActor:
    def __init__(self, scoring: Scoring) -> None:
        self._scoring = scoring
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        read = read_mme_sid(Workspace(scoring.root), scoring.model_id)
        self._length, self._track_ids_I = read.length, read.track_ids_I
        self._model = build(
            read.config,
            read.tensors(),
            read.base_tensors(),
            dtype=torch.float32 if self._device.type == "cpu" else torch.bfloat16,
            device=self._device,
        )
        self._matrix_ID = torch.from_numpy(read.item_matrix_ID).float().to(self._device)

    @torch.inference_mode()
    def __call__(self, histories: pa.Table) -> pa.Table:
        """A row of CANDIDATES for each row of HISTORIES."""
        lists = histories[ROWS].combine_chunks()
        seen_P = lists.flatten().to_numpy()
        lengths_U = lists.value_lengths().to_numpy()
        errors = np.where(lengths_U > 0, None, NO_HISTORY)  # type: ignore[call-overload]
        heard = np.flatnonzero(lengths_U)
        found = np.zeros((len(lengths_U), min(self._scoring.top, len(self._track_ids_I) - 1)), int)
        scores = np.zeros(found.shape, dtype=np.float32)
        if len(heard):
            rows_T, kept_U = last_rows(seen_P, lengths_U, heard, self._length)
            rows = torch.from_numpy(rows_T).long().to(self._device)
            vectors_UD = self._model.last_vectors(rows, torch.from_numpy(kept_U)).float()
            best = top_items(
                vectors_UD.nan_to_num(),
                self._matrix_ID,
                seen_P,
                lengths_U[heard],
                self._scoring.top,
            )
            finite_U = vectors_UD.isfinite().all(1).cpu().numpy()
            errors[heard[~finite_U]] = NOT_FINITE
            found[heard] = np.where(finite_U[:, None], best.rows_UK, 0)
            scores[heard] = best.scores_UK
        return self._table(histories, found, scores, errors)

    def _table(
        self, histories: pa.Table, found_UK: np.ndarray, scores_UK: np.ndarray, errors: np.ndarray
    ) -> pa.Table:
        users = histories.num_rows
        held_UK = found_UK > 0
        offsets = pa.array(np.concatenate([[0], held_UK.sum(1).cumsum()]), pa.int32())
        made_at = pa.scalar(self._scoring.made_at, schema.TIMESTAMP)
        columns = [
            histories[schema.USER_ID],
            pa.repeat(made_at, users),
            pa.ListArray.from_arrays(offsets, pa.array(self._track_ids_I[found_UK[held_UK]])),
            pa.ListArray.from_arrays(offsets, pa.array(scores_UK[held_UK])),
            pa.repeat(self._scoring.model_id, users),
            pa.repeat(made_at.cast(pa.int64()), users),
            pa.array(errors, pa.string()),
            histories[HISTORY_HASH],
        ]
        return pa.Table.from_arrays(columns, schema=CANDIDATES)

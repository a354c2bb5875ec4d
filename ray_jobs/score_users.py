"""Scores the catalogue for every user with a retriever model, and publishes the best of it.

    crescendo score-users --model-id MODEL [--top 200] [--actors 2] [--batch-size 256]

Reads `models/<model_id>/` and, through the feature store, every user's last listens; writes
`features/user_candidates_<model>/` and brings it online as a view of that name: tracks and scores,
best first, no track of the history among them. `crescendo release --retriever MODEL` then reads it.

A user's candidates depend on nothing but the model and the listens. So a run scores the users that
have no row yet or listened since, and those that a killed run had scored are not scored again.
A user who cannot be scored has a row with the reason and without candidates.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import schema
from feature_repo.artifacts import Manifest, read_manifest
from feature_repo.errors import InputError
from feature_repo.mme_sid_reader import MmeSidTracks, read_mme_sid_tracks
from feature_repo.workspace import Workspace
from ray_jobs.candidate_parts import (
    drop_others,
    publish_source,
    scored_hashes,
    work_folder,
    write_parts,
)
from ray_jobs.materialize import moment_of
from ray_jobs.progress import track
from ray_jobs.publish import publish_candidates
from ray_jobs.ray_session import ray_session
from ray_jobs.user_histories import HISTORY_HASH, user_histories
from ray_jobs.user_scoring import ERROR, Scoring, scored_blocks


@dataclass(frozen=True, kw_only=True)
class ScoreUsersOptions:
    model_id: str
    """A trained mme_sid model."""
    top: int = 200
    """Candidates of each user."""
    actors: int = 2
    """Processes that score, on a cluster without GPUs; with GPUs, one each."""
    batch_size: int = 256
    """Users of one pass; about 1,000 fill a large GPU."""

    def __post_init__(self) -> None:
        for name in ("top", "actors", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: expected at least 1")


def score_users(workspace: Workspace, options: ScoreUsersOptions) -> dict[str, Any]:
    """Candidates for every user of the feature store, online when it returns.

    `users` rows, `scored` in this run, `errors` among the rows, `view` and what is `online`,
    `users_per_second` of the scoring.
    """
    model = read_mme_sid_tracks(workspace, options.model_id)
    moment = moment_of(workspace)
    scoring = Scoring(
        root=workspace.root.absolute(),
        model_id=options.model_id,
        top=options.top,
        made_at=moment,
    )
    with work_folder(workspace, options.model_id) as folder:
        run = _Run(
            histories=user_histories(
                workspace,
                model.track_ids_I[1:],
                salt=f"{model.sha256} {options.top}".encode(),
                until=moment,
            ),
            done_N=scored_hashes(folder),
        )
        began = time.monotonic()
        scored = _score_missing(folder, run, scoring, options, total=_users(workspace))
        seconds = time.monotonic() - began
        drop_others(folder, run.hashes())
        manifest = _manifest(model, options)
        manifest.rows, errors = _count(folder)
        publish_source(workspace, folder, manifest)
    online = publish_candidates(workspace, options.model_id)
    return {
        "model_id": options.model_id,
        "users": manifest.rows["rows"],
        "scored": scored,
        "errors": errors,
        "view": manifest.id,
        "online": online["online"],
        "seconds": round(seconds, 3),
        "users_per_second": round(scored / seconds, 1),
    }


class _Run:
    """Histories on their way: those that were scored already are left out, all are remembered."""

    def __init__(self, histories: Iterable[pa.Table], done_N: np.ndarray) -> None:
        """`done_N`: hashes of scored histories, rising."""
        self._histories, self._done_N = histories, done_N
        self._hashes = [np.empty(0, dtype=np.int64)]

    def missing(self) -> Iterator[pa.Table]:
        for table in self._histories:
            hash_N = table[HISTORY_HASH].to_numpy()
            self._hashes.append(hash_N)
            missing = table.filter(pa.array(~np.isin(hash_N, self._done_N)))
            if missing.num_rows:
                yield missing

    def hashes(self) -> np.ndarray:
        """Of all histories that there were."""
        return np.concatenate(self._hashes)


def _score_missing(
    folder: Path, run: _Run, scoring: Scoring, options: ScoreUsersOptions, total: int
) -> int:
    missing = run.missing()
    first = next(missing, None)
    if first is None:
        return 0  # Ray takes seconds to start

    def all_missing() -> Iterator[pa.Table]:
        yield first
        yield from missing

    with ray_session():
        blocks = scored_blocks(
            all_missing(), scoring, actors=options.actors, batch_size=options.batch_size
        )
        counts = write_parts(folder, blocks)
        users = (user for count in counts for user in range(count))
        return sum(1 for _ in track(users, "score users", total=total, unit="users"))


def _users(workspace: Workspace) -> int:
    """About how many there are: for the progress bar."""
    source = workspace.feature_source(schema.USER_SEQUENCE)
    manifest = read_manifest(source, kind="feature_source", made_by="sequences", verify=False)
    return int(manifest.rows.get("users", 0))


def _count(folder: Path) -> tuple[dict[str, int], int]:
    """Rows of all parts, as a manifest has them, and how many are errors."""
    columns = [
        pq.read_table(part, columns=[ERROR])[ERROR] for part in sorted(folder.glob("*.parquet"))
    ]
    rows = sum(len(column) for column in columns)
    return {"rows": rows}, rows - sum(column.null_count for column in columns)


def _manifest(model: MmeSidTracks, options: ScoreUsersOptions) -> Manifest:
    return Manifest(
        kind="feature_source",
        id=schema.candidates_view_name(options.model_id),
        parents={"model": options.model_id},
        options={"top": options.top},
        info={"retriever_sha256": model.sha256},
    )

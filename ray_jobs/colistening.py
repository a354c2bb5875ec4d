"""What is listened to with what: item vectors from the training part of the log, as a modality.

Called by `crescendo study --question collaborative`; in Python, `colistening`. Writes
`embeddings/colisten/<encoder_id>/` in the form of `crescendo embed`, for `quantize` to take.

Two listens are together where one user has them at most WINDOW listens apart, within one session
where every listen names one. With n_ij such pairs of tracks i and j, either way round,

    PPMI_ij = max(0, log(n_ij n / (n_i n_j)))      n_i = sum_j n_ij, n = sum_i n_i
    vectors = U sqrt(S) of its truncated SVD       (Levy and Goldberg 2014)

Only events before the first impression of the validation part are counted, and of those only the
ones that had reached the log by then: nothing of validation or test is in the vectors. They do
know the listens of the training part, whose labels a ranker is trained on.

Shape suffixes: E listens, T tracks with a pair, D dims.
"""

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds

from feature_repo import schema
from feature_repo.artifacts import (
    MANIFEST,
    Manifest,
    content_id,
    newest,
    read_manifest,
    write_artifact,
    write_json,
)
from feature_repo.errors import ArtifactError, InputError
from feature_repo.workspace import Workspace
from ray_jobs.arrow_sql import literal
from ray_jobs.embed import KIND
from ray_jobs.encoders.inputs import INPUT_HASH, Inputs
from ray_jobs.encoders.pipeline import ERROR, OK, embedding_schema
from ray_jobs.encoders.text import TextEncoder
from ray_jobs.impressions import ImpressionOptions, impressions
from ray_jobs.progress import step
from ray_jobs.sequences import deletions, events_id

MODALITY = "colisten"
WINDOW = 10
"""Listens apart at most: about half of the history that a ranker sees."""


@dataclass(frozen=True, kw_only=True)
class ColisteningOptions:
    dims: int = 64
    impressions: ImpressionOptions = field(default_factory=ImpressionOptions)
    """Whose training part is listened to."""

    def __post_init__(self) -> None:
        if self.dims < 1:
            raise InputError(f"dims must be at least 1, got {self.dims}")


def colistening(workspace: Workspace, options: ColisteningOptions) -> dict[str, Any]:
    """Vectors of every track of the catalogue, or why it has none. Returns `encoder_id` and rows.

    The embedding is then the newest of its modality. One that is there for this log, catalogue and
    split is kept. InputError where fewer than `dims` + 1 tracks were listened to beside others.
    """
    workspace.require(workspace.tracks, "ingest --source KIND --path FOLDER")
    tracks = pyarrow.dataset.dataset(workspace.tracks, format="parquet")
    # Read as text is, as the only input that every catalogue has: a track that is renamed has
    # its vector made again.
    inputs = Inputs.read(tracks, TextEncoder.columns, workspace.root.absolute())
    rows = impressions(workspace.events, options.impressions, deletions(workspace))
    validation = rows.loc[rows["part"] == "validation", schema.EVENT_TIMESTAMP]
    cut = validation.min().to_pydatetime()
    settings = asdict(options) | {"window": WINDOW, "before": cut.isoformat()}
    log_now = events_id(workspace)
    catalogue = [inputs.track_ids.tobytes(), inputs.hashes.tobytes()]
    encoder_id = content_id("ppmi-svd", log_now, settings, *catalogue)
    folder = workspace.embeddings(MODALITY, encoder_id)
    manifest = _there(folder)
    if manifest is None:
        with step("co-listening", before=settings["before"], dims=options.dims):
            track_ids, vectors_TD = _vectors(workspace, cut, options.dims)
            table = _rows(inputs, track_ids, vectors_TD)
        heard = len(np.intersect1d(track_ids, inputs.track_ids))
        manifest = Manifest(
            kind=KIND,
            id=encoder_id,
            parents={"events": log_now},
            options=settings,
            rows={
                "tracks": table.num_rows,
                "ok": heard,
                "errors": table.num_rows - heard,
            },
            info={
                "modality": MODALITY,
                "encoder": "ppmi-svd",
                "encoder_path": None,
                "columns": list(TextEncoder.columns),
                "dim": options.dims,
            },
        )
        with write_artifact(folder, manifest) as partial:
            pq.write_table(table, partial / "part-00001.parquet")
    elif newest(folder.parent, kind=KIND, made_by="study").id != encoder_id:
        manifest.created_at = datetime.now(UTC).isoformat()
        write_json(folder / MANIFEST, asdict(manifest))
    return {"encoder_id": encoder_id, **manifest.rows}


def _there(folder: Path) -> Manifest | None:
    """The embedding's manifest, or None where there is no whole one: then it is made."""
    try:
        return read_manifest(folder, kind=KIND, made_by="study")
    except ArtifactError:
        return None


def _vectors(workspace: Workspace, cut: datetime, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """track_ids_T rising and their vectors_TD."""
    units_E, tracks_E = listens_before(workspace, cut)
    track_ids, track_E = np.unique(tracks_E, return_inverse=True)
    pairs_TT = pair_counts(units_E, track_E, len(track_ids))
    heard_T = np.flatnonzero(pairs_TT.sum(1))
    if len(heard_T) <= dims:
        raise InputError(
            f"dims must be fewer than the {len(heard_T)} tracks that were listened to beside "
            f"others before {cut.isoformat()}, got {dims}"
        )
    return track_ids[heard_T], svd_vectors(ppmi(pairs_TT[heard_T][:, heard_T]), dims)


def listens_before(workspace: Workspace, cut: datetime) -> tuple[np.ndarray, np.ndarray]:
    """Unit and track of every listen that happened and reached the log before `cut`, in order.

    A unit is a user's session, or the user where some listen of the log names no session.
    """
    listens = ", ".join(literal(action) for action in schema.LISTEN_ACTIONS)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("deleted", pa.table({"event_id": deletions(workspace)}))
        rows = connection.sql(
            f"""
            WITH listens AS (
                FROM read_parquet({literal(f"{workspace.events}/*.parquet")})
                ANTI JOIN deleted USING (event_id)
                WHERE action IN ({listens})
                  AND greatest(event_timestamp, coalesce(ingested_at, event_timestamp)) < $cut
            ),
            units AS (
                SELECT *, if((SELECT bool_and(session_id IS NOT NULL) FROM listens),
                             session_id, 0) AS session
                FROM listens
            )
            SELECT dense_rank() OVER (ORDER BY user_id, session) AS unit, track_id
            FROM units ORDER BY unit, event_timestamp, event_id
            """,
            params={"cut": cut},
        ).to_arrow_table()
    return rows["unit"].to_numpy(), rows["track_id"].to_numpy()


def pair_counts(units_E: np.ndarray, track_E: np.ndarray, tracks: int) -> csr_matrix:
    """n_ij (T, T): how often tracks i and j are at most WINDOW listens apart in one unit.

    Listens in order; a track beside itself is no pair.
    """
    pairs_TT = csr_matrix((tracks, tracks))
    for apart in range(1, WINDOW + 1):
        earlier, later = track_E[:-apart], track_E[apart:]
        pair = (units_E[:-apart] == units_E[apart:]) & (earlier != later)
        ones = np.ones(pair.sum())
        pairs_TT += csr_matrix((ones, (earlier[pair], later[pair])), shape=(tracks, tracks))
    return pairs_TT + pairs_TT.T


def ppmi(pairs_TT: csr_matrix) -> csr_matrix:
    """max(0, log(n_ij n / (n_i n_j))) where there are pairs, 0 elsewhere."""
    n_T = np.asarray(pairs_TT.sum(1)).ravel()
    found = pairs_TT.tocoo()
    information = np.log(found.data * n_T.sum() / (n_T[found.row] * n_T[found.col]))
    kept = (np.maximum(0, information), (found.row, found.col))
    return csr_matrix(kept, shape=pairs_TT.shape)


def svd_vectors(matrix_TT: csr_matrix, dims: int) -> np.ndarray:
    """U sqrt(S) (T, D) float32 by falling singular value, the same for the same matrix.

    A direction's largest entry is above 0: the SVD leaves its sign open.
    """
    start = np.random.default_rng(0).normal(size=matrix_TT.shape[0])
    u_TD, s_D, _ = svds(matrix_TT, k=dims, v0=start)
    order = np.argsort(-s_D)
    u_TD, s_D = u_TD[:, order], s_D[order]
    signs_D = np.sign(u_TD[np.abs(u_TD).argmax(0), np.arange(dims)])
    return (u_TD * signs_D * np.sqrt(s_D)).astype(np.float32)


def _rows(inputs: Inputs, track_ids: np.ndarray, vectors_TD: np.ndarray) -> pa.Table:
    """A row for every track of the catalogue, with its vector or with why it has none."""
    dims = vectors_TD.shape[1]
    place = np.minimum(np.searchsorted(track_ids, inputs.track_ids), len(track_ids) - 1)
    heard = track_ids[place] == inputs.track_ids
    values = np.where(heard[:, None], vectors_TD[place], np.float32(0))
    wanted = embedding_schema(dims).append(pa.field(INPUT_HASH, pa.int64(), nullable=False))
    return pa.Table.from_arrays(
        [
            pa.array(inputs.track_ids),
            pa.FixedSizeListArray.from_arrays(
                pa.array(values.ravel()), dims, mask=pa.array(~heard)
            ),
            pa.array(np.where(heard, OK, ERROR), pa.string()),
            pa.array(
                [None if known else "not listened to beside another track" for known in heard],
                pa.string(),
            ),
            pa.array(inputs.hashes),
        ],
        schema=wanted,
    )

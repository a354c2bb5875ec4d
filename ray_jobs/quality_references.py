"""What IDs are held against: labels of the tracks, and which tracks are listened to together.

`tag_labels` come from the catalogue; `cluster_labels` from the vectors, where the catalogue has no
tags worth the name. `co_listened` comes from the listening log. All are the same for the same
tables, whatever the order of their rows; DuckDB's `hash` draws the samples.

Shape suffixes: N tracks, D dims, P pairs.
"""

from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from feature_repo import schema
from feature_repo.workspace import Workspace
from models.kmeans import kmeans
from models.nearest import nearest
from ray_jobs.arrow_sql import literal

LEAST_TRACKS = 10
"""A tag that fewer tracks carry is no label: it says who, not what."""
MOST_SHARE = 0.5
"""A tag that more of the tagged tracks carry is no label: it says nothing."""
LEAST_LABELLED = 0.5
"""Tags are the reference where they label at least this share of the tracks."""
CLUSTERS = 16
CLUSTER_ROWS = 65_536
"""Rows, drawn by the seed, that the reference clusters are fitted on."""
ITEMS, PARTNERS, LISTENINGS, TRACKS_EACH, LEAST_TOGETHER = 2_000, 10, 200, 200, 2
"""Sampled items, top partners of each, listenings looked at of each item, tracks looked at of each
listening, and how many listenings must hold both for a pair to count."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """`label_N` int64, negative = no label; `kind` `tags` or `clusters`."""

    kind: str
    label_N: np.ndarray

    @property
    def labels(self) -> int:
        return len(np.unique(self.label_N[self.label_N >= 0]))

    @property
    def labelled(self) -> int:
        return int((self.label_N >= 0).sum())


@dataclass(frozen=True, kw_only=True)
class CoListened:
    """`pair_P2` row numbers (item, one of its top partners); `within` `session` or `user`."""

    within: str
    pair_P2: np.ndarray


def reference(workspace: Workspace, track_ids: np.ndarray, x_ND: Tensor, seed: int) -> Reference:
    """Labels of these tracks: by tag where that labels enough of them, else by cluster."""
    by_tag = tag_labels(workspace, track_ids)
    if by_tag.labels > 1 and by_tag.labelled >= LEAST_LABELLED * len(track_ids):
        return by_tag
    return cluster_labels(x_ND, seed)


def tag_labels(workspace: Workspace, track_ids: np.ndarray) -> Reference:
    """Each track's most common tag, of the tags on LEAST_TRACKS to MOST_SHARE of these tracks."""
    workspace.require(workspace.tracks, "ingest --source KIND --path FOLDER")
    with duckdb.connect() as connection:
        connection.register("known", pa.table({"track_id": track_ids}))
        rows = connection.sql(
            f"""
            WITH tagged AS (
                SELECT DISTINCT track_id, unnest(tags) AS tag
                FROM read_parquet({literal(f"{workspace.tracks}/*.parquet")})
                SEMI JOIN known USING (track_id)
            ),
            spread AS (SELECT tag, count(*) AS tracks FROM tagged GROUP BY tag),
            labels AS (
                FROM spread
                WHERE tracks >= {LEAST_TRACKS}
                  AND tracks <= {MOST_SHARE} * (SELECT count(DISTINCT track_id) FROM tagged)
            )
            SELECT track_id, tag FROM tagged JOIN labels USING (tag)
            QUALIFY row_number() OVER (PARTITION BY track_id ORDER BY tracks DESC, tag) = 1
            """
        ).to_arrow_table()
    label_N = np.full(len(track_ids), -1, dtype=np.int64)
    if rows.num_rows:
        order = np.argsort(track_ids)
        place = order[np.searchsorted(track_ids, rows["track_id"].to_numpy(), sorter=order)]
        numbers = np.unique(np.array(rows["tag"].to_pylist()), return_inverse=True)[1]
        label_N[place] = numbers
    return Reference(kind="tags", label_N=label_N)


def cluster_labels(x_ND: Tensor, seed: int) -> Reference:
    """k-means of the vectors themselves, CLUSTERS of them."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(x_ND), generator=generator)[:CLUSTER_ROWS].sort().values
    fitted = kmeans(x_ND[rows], CLUSTERS, seed=seed)
    return Reference(kind="clusters", label_N=nearest(x_ND, fitted.centroids).numpy())


def co_listened(workspace: Workspace, track_ids: np.ndarray) -> CoListened | None:
    """Top co-listened partners of sampled tracks, among these tracks; None without any.

    Two tracks are listened to together within a session, where every listen of the log names one,
    else by one user. A pair is ranked by how many listenings hold both.
    """
    if not workspace.events.exists():
        return None
    listens = ", ".join(literal(action) for action in schema.LISTEN_ACTIONS)
    with duckdb.connect() as connection:
        connection.register(
            "known", pa.table({"track_id": track_ids, "row": np.arange(len(track_ids))})
        )
        connection.execute(
            f"""
            CREATE TEMP TABLE listens AS
            SELECT user_id, session_id, row
            FROM read_parquet({literal(f"{workspace.events}/*.parquet")})
            JOIN known USING (track_id) WHERE action IN ({listens})
            """
        )
        counted = "SELECT count(*), count(session_id) FROM listens"
        total, in_sessions = connection.sql(counted).fetchall()[0]
        within = "session" if total and in_sessions == total else "user"
        listening = "(user_id, session_id)" if within == "session" else "user_id"
        pairs = connection.sql(
            f"""
            WITH held AS (SELECT DISTINCT {listening} AS listening, row FROM listens),
            kept AS (
                FROM held
                QUALIFY row_number() OVER (PARTITION BY listening ORDER BY hash(row), row)
                    <= {TRACKS_EACH}
            ),
            items AS (
                SELECT row AS item FROM kept GROUP BY row HAVING count(*) >= {LEAST_TOGETHER}
                ORDER BY hash(row), row LIMIT {ITEMS}
            ),
            looked_at AS (
                SELECT item, listening FROM items JOIN kept ON item = row
                QUALIFY row_number() OVER (PARTITION BY item ORDER BY hash(listening), listening)
                    <= {LISTENINGS}
            ),
            together AS (
                SELECT item, row AS other, count(*) AS times
                FROM looked_at JOIN kept USING (listening)
                WHERE row <> item GROUP BY item, row HAVING count(*) >= {LEAST_TOGETHER}
            )
            SELECT item, other FROM together
            QUALIFY row_number() OVER (PARTITION BY item ORDER BY times DESC, hash(other), other)
                <= {PARTNERS}
            ORDER BY item, other
            """
        ).to_arrow_table()
    if not pairs.num_rows:
        return None
    pair_P2 = np.stack([pairs["item"].to_numpy(), pairs["other"].to_numpy()], axis=1)
    return CoListened(within=within, pair_P2=pair_P2)

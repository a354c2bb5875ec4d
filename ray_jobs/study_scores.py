"""The test rows that all runs of a study share, and every run's metrics on bootstrap draws of them.

Reads `models/<id>/test_scores.parquet`. Training sets of several generations are several
artifacts, but of the same impressions: rows are paired by impression_id, and a run whose rows are
others is refused.

Shape suffixes: N test rows, U users, S seeds, R draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import schema
from feature_repo.artifacts import read_manifest
from feature_repo.errors import ArtifactError
from feature_repo.workspace import Workspace
from ray_jobs.bootstrap import draw, drawn_auc, drawn_gauc, drawn_mean
from ray_jobs.slices import COLD_BELOW, TRACK_IMPRESSIONS

IMPRESSION_ID = "impression_id"
LOGLOSS_FLOOR = 1e-7
"""Of `models.ranking_metrics.logloss`."""


@dataclass(frozen=True, kw_only=True)
class SharedRows:
    """Who was shown what, and which of the users and seeds each draw holds."""

    impressions_N: np.ndarray
    """impression_id, rising."""
    labels_N: np.ndarray
    user_N: np.ndarray
    """Numbers of the users: rows of `counts_UR`."""
    cold_N: np.ndarray
    """Whether the track has fewer than COLD_BELOW training impressions."""
    counts_UR: np.ndarray
    counts_SR: np.ndarray

    @classmethod
    def read(cls, workspace: Workspace, model_id: str, seeds: int) -> "SharedRows":
        """The rows of one model's test, drawn from with a fixed seed."""
        scored = _scored(workspace, model_id)
        users, user_N = np.unique(scored[schema.USER_ID].to_numpy(), return_inverse=True)
        draws = draw(len(users), seeds)
        return cls(
            impressions_N=scored[IMPRESSION_ID].to_numpy(),
            labels_N=scored["label"].to_numpy(),
            user_N=user_N,
            cold_N=scored[TRACK_IMPRESSIONS].to_numpy() < COLD_BELOW,
            counts_UR=draws.counts_UR,
            counts_SR=draws.counts_SR,
        )

    def counts(self) -> dict[str, int]:
        return {
            "test_rows": len(self.labels_N),
            "cold_rows": int(self.cold_N.sum()),
            "test_users": len(self.counts_UR),
            "draws": self.counts_UR.shape[1],
        }

    def scores_of(self, workspace: Workspace, model_id: str) -> np.ndarray:
        """A model's scores (N,) of these rows. ArtifactError if its test has others."""
        scored = _scored(workspace, model_id)
        if not (
            np.array_equal(scored[IMPRESSION_ID].to_numpy(), self.impressions_N)
            and np.array_equal(scored["label"].to_numpy(), self.labels_N)
        ):
            raise ArtifactError(
                f"the test rows of {model_id} are not those of the study's baseline "
                f"({scored.num_rows:,} and {len(self.labels_N):,} rows): the event log changed "
                "meanwhile; run `crescendo study` again"
            )
        return scored["score"].to_numpy().astype(np.float64)


def drawn_metrics(
    workspace: Workspace, rows: SharedRows, model_ids: Sequence[str]
) -> dict[str, np.ndarray]:
    """Metrics (S, R) by name of the runs of one variant, a seed a row, on all draws."""
    per_seed = [_on_draws(rows, rows.scores_of(workspace, model_id)) for model_id in model_ids]
    return {name: np.stack([metrics[name] for metrics in per_seed]) for name in per_seed[0]}


def _on_draws(rows: SharedRows, scores_N: np.ndarray) -> dict[str, np.ndarray]:
    user_N, labels_N, counts_UR = rows.user_N, rows.labels_N, rows.counts_UR
    cold = (user_N[rows.cold_N], labels_N[rows.cold_N], scores_N[rows.cold_N])
    chances_N = np.clip(scores_N, LOGLOSS_FLOOR, 1 - LOGLOSS_FLOOR)
    losses_N = -np.where(labels_N == 1, np.log(chances_N), np.log1p(-chances_N))
    return {
        "auc": drawn_auc(user_N, labels_N, scores_N, counts_UR),
        "gauc": drawn_gauc(user_N, labels_N, scores_N, counts_UR),
        "cold_auc": drawn_auc(*cold, counts_UR),
        "cold_gauc": drawn_gauc(*cold, counts_UR),
        "logloss": drawn_mean(user_N, losses_N, counts_UR),
    }


def _scored(workspace: Workspace, model_id: str) -> pa.Table:
    folder = workspace.models / model_id
    read_manifest(folder, kind="model", made_by="train")
    columns = [IMPRESSION_ID, schema.USER_ID, "label", "score", TRACK_IMPRESSIONS]
    table = pq.read_table(folder / "test_scores.parquet", columns=columns)
    return table.sort_by(IMPRESSION_ID)

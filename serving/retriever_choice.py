"""Which retriever model a release names, and whether its replicas run it or read what it proposed.

    chosen = choose_retriever(workspace, "mme_sid-0123456789ab", "gen-0123456789ab")
    chosen.candidates_view     # None: live

One rule: where `crescendo score-users` has published the model's candidates, a release reads them
with the user's row (batch); else a replica runs the model on the user's listens (live). Live knows
the last listen and users who are made up; batch costs a request next to nothing, whatever the size
of the model. Which of the two it is, is written into the release and does not change afterwards.

The generation whose IDs the retriever read need not be the ranker's: they meet in track ids. But a
model of another catalogue is refused.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from feature_repo import schema
from feature_repo.artifacts import MANIFEST, read_manifest
from feature_repo.errors import ArtifactError
from feature_repo.mme_sid_reader import read_mme_sid
from feature_repo.workspace import Workspace

CANDIDATES = (schema.CANDIDATE_TRACK_IDS, schema.CANDIDATES_MADE_AT)
"""What a request reads of a view of candidates."""
LEAST_SHARED = 0.5
"""Of the retriever's tracks, the share that the ranker's generation has to hold. Those that it
lacks are never proposed: places that the source leaves empty."""


@dataclass(frozen=True, kw_only=True)
class ChosenRetriever:
    """Fields of a release."""

    retriever_model_id: str
    retriever_sha256: str
    candidates_view: str | None


def choose_retriever(workspace: Workspace, model_id: str, generation_id: str) -> ChosenRetriever:
    """The model as a release of this generation names it.

    ArtifactError where it is missing, changed, no mme_sid model, of another catalogue, where its
    candidates were scored with other weights, or, live, where its base checkpoint is not there.
    """
    read = read_mme_sid(workspace, model_id)
    _check_tracks(workspace, read.track_ids_I[1:], model_id, generation_id)
    view = schema.candidates_view_name(model_id)
    if not (workspace.feature_source(view) / MANIFEST).exists():
        read.base_tensors()  # hashed and mapped; their bytes stay on the disk
        return ChosenRetriever(
            retriever_model_id=model_id, retriever_sha256=read.sha256, candidates_view=None
        )
    scored = read_manifest(
        workspace.feature_source(view),
        kind="feature_source",
        made_by=f"score-users --model-id {model_id}",
        verify=False,
    )
    if scored.info["retriever_sha256"] != read.sha256:
        raise ArtifactError(
            f"the candidates in {view} were scored with other weights than retriever {model_id} "
            f"has now; run `crescendo score-users --model-id {model_id}`"
        )
    return ChosenRetriever(
        retriever_model_id=model_id, retriever_sha256=read.sha256, candidates_view=view
    )


def _check_tracks(
    workspace: Workspace, track_ids_V: np.ndarray, model_id: str, generation_id: str
) -> None:
    ids = pq.read_table(
        workspace.generations / generation_id / "ids.parquet", columns=[schema.TRACK_ID]
    )
    shared = float(np.isin(track_ids_V, ids[schema.TRACK_ID].to_numpy()).mean())
    if not shared >= LEAST_SHARED:
        raise ArtifactError(
            f"of the {len(track_ids_V):,} tracks of retriever {model_id} generation "
            f"{generation_id} holds {shared:.0%}, wanted at least {LEAST_SHARED:.0%}: it is of "
            "another catalogue; run `crescendo train-mme-sid` on this one"
        )

"""Ranks candidates for a user with one release: features from the store, one forward pass.

The item side (codes of the whole catalogue) is read from the online store once, when the release
is loaded; the user's sequence is read on every request. Training and serving build the model's
input with the same function, `models.batch.make_batch`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import torch
from feast.errors import FeatureServiceNotFoundException
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file

from feature_repo import schema
from feature_repo.artifacts import read_manifest
from feature_repo.errors import ArtifactError
from feature_repo.item_table import read_codes_online
from feature_repo.store import open_store
from feature_repo.workspace import Workspace
from models.batch import ItemTable, Vocabulary, make_batch
from models.rankers import load_ranker
from serving.releases import Release
from serving.user_rows import UserRows

WARM_UP_CANDIDATES = 500


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The answer to one request."""

    track_ids: list[int]
    """Known candidates, best first."""
    scores: list[float]
    """Probability of the label, same order."""
    user_known: bool
    """False: no listen of the user is known, so the ranking is the same for every such user."""
    unknown_track_ids: list[int]
    """Candidates outside the release's generation, not ranked."""


class ReleaseRanker:
    """One release, loaded and checked, ready to rank."""

    def __init__(
        self, workspace: Workspace, release: Release, *, logged_share: float = 0.0
    ) -> None:
        """`logged_share`: share of users whose reads are kept for `crescendo audit`."""
        self.release = release
        folder = workspace.models / release.model_id
        manifest = read_manifest(folder, kind="model", made_by="train")
        if manifest.parents["generation"] != release.generation_id:
            raise ArtifactError(
                f"release {release.release_id} names generation {release.generation_id}, its "
                f"model {release.model_id} was trained on {manifest.parents['generation']}; "
                "run `crescendo release` to make a release that fits"
            )
        if manifest.files["model.safetensors"] != release.model_sha256:
            raise ArtifactError(
                f"model {release.model_id} was trained again since release {release.release_id} "
                "was made; run `crescendo release` to serve the new weights"
            )
        config = manifest.options["ranker"]
        self._model = load_ranker(config, load_file(folder / "model.safetensors"))
        self._history_length = config["history_length"]
        self._user_features = manifest.info["features"]
        vocabulary = load_arrays(folder / "vocabulary.safetensors")
        self._vocabulary = Vocabulary(
            track_ids_I=vocabulary["track_ids"], train_counts_I=vocabulary["train_counts"]
        )
        self._store = open_store(workspace)
        self._check_features(config["families"])
        self.user_rows = UserRows(workspace, self._store, self._user_features, logged_share)
        generation_folder = workspace.generations / release.generation_id
        read_manifest(generation_folder, kind="generation", made_by="quantize")
        catalogue = pq.read_table(generation_folder / "ids.parquet", columns=[schema.TRACK_ID])
        track_ids, codes = read_codes_online(
            self._store,
            release.generation_id,
            config["families"],
            config["levels"],
            catalogue[schema.TRACK_ID].to_numpy(),
        )
        if len(track_ids) == 0:
            raise ArtifactError(
                f"the online store holds no track of generation {release.generation_id}; "
                f"run `crescendo publish --generation {release.generation_id}`"
            )
        self._items = ItemTable(track_ids_I=track_ids, codes_IFL=codes)

    def _check_features(self, families: Sequence[str]) -> None:
        """The release's feature service must hold exactly what the model was trained with."""
        try:
            service = self._store.get_feature_service(self.release.feature_service)
        except FeatureServiceNotFoundException as error:
            raise ArtifactError(
                f"feature service {self.release.feature_service} is not in the feature store; "
                "run `crescendo release` to register it"
            ) from error
        held = {
            f"{projection.name}:{feature.name}"
            for projection in service.feature_view_projections
            for feature in projection.features
        }
        view = schema.semantic_ids_view_name(self.release.generation_id)
        columns = [*(schema.sid_column(family) for family in families), schema.GENERATION]
        wanted = {*self._user_features, *(f"{view}:{column}" for column in columns)}
        if held != wanted:
            raise ArtifactError(
                f"feature service {service.name} holds {sorted(held)}, its model was trained "
                f"with {sorted(wanted)}; run `crescendo release`"
            )

    def rank(self, user_id: int, candidates: Sequence[int]) -> Ranking:
        """Orders the candidates by score, ties by track id. A repeated candidate counts once."""
        history = self.user_rows.listens(user_id)
        wanted = np.unique(np.array(candidates, dtype=np.int64))
        known = self._items.knows(wanted)
        tracks_B = wanted[known]
        scores_B = self._score(history, tracks_B)
        order = np.argsort(-scores_B, kind="stable")
        return Ranking(
            track_ids=tracks_B[order].tolist(),
            scores=scores_B[order].tolist(),
            user_known=history is not None,
            unknown_track_ids=wanted[~known].tolist(),
        )

    def warm_up(self) -> None:
        """The first pass allocates and compiles: a request should not pay for it."""
        self.rank(0, self._items.track_ids_I[:WARM_UP_CANDIDATES].tolist())

    @torch.inference_mode()
    def _score(self, history: np.ndarray | None, tracks_B: np.ndarray) -> np.ndarray:
        if len(tracks_B) == 0:
            return np.zeros(0, dtype=np.float32)
        listens = np.zeros(0, dtype=np.int64) if history is None else history
        batch = make_batch(
            tracks_B,
            np.tile(listens, len(tracks_B)),
            np.arange(len(tracks_B) + 1) * len(listens),
            items=self._items,
            vocabulary=self._vocabulary,
            history_length=self._history_length,
        )
        return torch.sigmoid(self._model(batch)).numpy()

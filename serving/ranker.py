"""Ranks candidates for a user with one release: features from the store, one forward pass.

The item side (codes of the whole catalogue) is read from the online store when the release is
loaded; the user's row is read once, on every request. Training and serving build the model's input
with the same functions, `models.batch` and `models.number_rows.number_rows`; a model of target
attention is scored from tables, by `serving.fast_scores` or, where torch sees a GPU, by
`serving.cuda_scores`, which a release's own check compares with the model.

Shape suffixes: B rows, one a candidate; C candidates of one user, I tracks of the catalogue,
F families, L levels, N numbers.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import torch
from feast import FeatureStore
from feast.errors import FeatureServiceNotFoundException
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file

from feature_repo import schema
from feature_repo.artifacts import read_manifest
from feature_repo.errors import ArtifactError
from feature_repo.item_table import read_codes_online
from feature_repo.store import open_store
from feature_repo.stores.packed_columns import boundaries
from feature_repo.workspace import Workspace
from models.batch import Batch, ItemLookup, ItemTable, Vocabulary, make_batch, track_rows
from models.ranker_config import RankerConfig
from models.rankers import load_ranker
from serving.cuda_scores import CudaScores
from serving.fast_scores import FastScores
from serving.number_features import NumberFeatures
from serving.releases import Release, read_features
from serving.retrieval.new_items import items_with_new_tracks
from serving.retrieval.release_retriever import ReleaseRetriever
from serving.score_tables import ScoreTables
from serving.user_rows import UserRow, UserRows

WARM_UP_CANDIDATES = 500
READ_TIMEOUT_S = 0.05
"""Longest wait for a connection to the online store, and for each of its answers."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The answer to one request."""

    track_ids: list[int]
    """Known candidates, best first."""
    scores: list[float | None]
    """Probability of the label, same order; None for a candidate that was not scored: those follow
    the scored ones, by how often they were played in training."""
    user_known: bool
    """False: no listen of the user is known, so the ranking is the same for every such user."""
    unknown_track_ids: list[int]
    """Candidates outside the release's generation, not ranked."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Catalogue:
    """The item side at one moment. A request takes one and keeps it."""

    items: ItemTable
    lookup: ItemLookup
    fast: FastScores | CudaScores | None
    """None: the model has no target attention, and is run as it was trained."""
    numbers: NumberFeatures | None
    """None: the model sees no numbers."""


def impatient(store: FeatureStore) -> FeatureStore:
    """A store that has not been used, from now on without patience for a server that is away: a
    request has none, and asks again at the next one."""
    settings = store.config.online_store
    if hasattr(settings, "retry_s"):  # Redis, with packed rows
        settings.timeout_s, settings.retry_s = READ_TIMEOUT_S, 0.0
    return store


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
        self.workspace = workspace
        self.config = RankerConfig(**manifest.options["ranker"])
        self.model = load_ranker(
            manifest.options["ranker"], load_file(folder / "model.safetensors")
        )
        self._features = read_features(release, manifest.info["features"])
        trained = load_arrays(folder / "vocabulary.safetensors")
        self._vocabulary = Vocabulary(
            track_ids_I=trained["track_ids"], train_counts_I=trained["train_counts"]
        )
        self.store = open_store(workspace)
        self._check_features(self.config.families)
        views = (schema.USER_SEQUENCE, schema.USER_STATS, release.candidates_view)
        of_user = [name for name in self._features if name.split(":")[0] in views]
        self.user_rows = UserRows(
            workspace, impatient(open_store(workspace)), of_user, logged_share
        )
        self.catalogue = self._catalogue(self._read_items())
        self.retriever: ReleaseRetriever | None = None
        """What `/v1/recommend` takes candidates from, once `load_retriever` was called."""

    @property
    def items(self) -> ItemTable:
        """The catalogue's track ids and codes as they are now."""
        return self.catalogue.items

    def load_retriever(self, like: "ReleaseRanker | None" = None) -> None:
        """`like`: a loaded ranker, whose index is shared where the generation is the same."""
        self.retriever = ReleaseRetriever.load(
            self.workspace, self.release, self.items, like=like.retriever if like else None
        )

    def refresh(self) -> None:
        """Takes in tracks that were assigned, and what retrieval knows of plays and releases.

        For a watching thread: requests keep what they began with. Raises what loading raises, and
        then nothing has changed.
        """
        grown = items_with_new_tracks(
            self.workspace, self.release.generation_id, self.config.families, self.items
        )
        if grown is not None:
            self.catalogue = self._catalogue(grown)
        if self.retriever is not None and self.retriever.stale(self.items):
            self.retriever = self.retriever.refreshed(self.items)

    def _read_items(self) -> ItemTable:
        """All tracks of the generation that are online."""
        generation_id = self.release.generation_id
        folder = self.workspace.generations / generation_id
        read_manifest(folder, kind="generation", made_by="quantize")
        listed = pq.read_table(folder / "ids.parquet", columns=[schema.TRACK_ID])
        track_ids, codes = read_codes_online(
            self.store,
            generation_id,
            self.config.families,
            self.config.levels,
            listed[schema.TRACK_ID].to_numpy(),
        )
        if len(track_ids) == 0:
            raise ArtifactError(
                f"the online store holds no track of generation {generation_id}; "
                f"run `crescendo publish --generation {generation_id}`"
            )
        return ItemTable(track_ids_I=track_ids, codes_IFL=codes)

    def _catalogue(self, items: ItemTable) -> Catalogue:
        lookup = ItemLookup.of(items, self._vocabulary, torch.device("cpu"))
        numbers = None
        if self.config.numbers:
            numbers = NumberFeatures(self.workspace, self.config.numbers, items.track_ids_I)
        tables = ScoreTables.of(self.model, self.config, lookup)
        fast = None
        if tables is not None:
            fast = CudaScores(tables) if torch.cuda.is_available() else FastScores(tables)
        return Catalogue(
            items=items,
            lookup=lookup,
            fast=fast,
            numbers=numbers,
        )

    def _check_features(self, families: Sequence[str]) -> None:
        """The release's feature service must hold exactly what its models are given."""
        try:
            service = self.store.get_feature_service(self.release.feature_service)
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
        wanted = {*self._features, *(f"{view}:{column}" for column in columns)}
        if held != wanted:
            raise ArtifactError(
                f"feature service {service.name} holds {sorted(held)}, its models want "
                f"{sorted(wanted)}; run `crescendo release`"
            )

    def rank(
        self, user_id: int, candidates: Sequence[int], *, moment_us: int | None = None
    ) -> Ranking:
        """Reads the user and orders the candidates. `moment_us`: see `ranking`."""
        (user,) = self.user_rows.read([user_id])
        return self.ranking(user, candidates, moment_us=moment_us)

    def ranking(
        self,
        user: UserRow,
        candidates: Sequence[int],
        *,
        moment_us: int | None = None,
        scored: int | None = None,
    ) -> Ranking:
        """Orders the candidates by score, ties by track id. A repeated candidate counts once.

        `moment_us`: microseconds since 1970 that count as now; by default the clock's.
        `scored`: so many of the known candidates, the first ones, are given to the model.
        """
        moment_us = time.time_ns() // 1000 if moment_us is None else moment_us
        catalogue = self.catalogue
        wanted, first = np.unique(np.array(candidates, dtype=np.int64), return_index=True)
        knows = catalogue.items.knows(wanted)
        tracks, left = wanted[knows], wanted[:0]
        if scored is not None and scored < len(tracks):
            in_order = np.argsort(first[knows])
            tracks, left = np.sort(tracks[in_order[:scored]]), tracks[in_order[scored:]]
            left = left[np.lexsort((left, -self._vocabulary.train_counts(left)))]
        scores = self._scores(catalogue, user, tracks, moment_us)
        order = np.argsort(-scores, kind="stable")
        return Ranking(
            track_ids=[*tracks[order].tolist(), *left.tolist()],
            scores=[*scores[order].tolist(), *([None] * len(left))],
            user_known=len(user.track_ids_L) > 0,
            unknown_track_ids=wanted[~knows].tolist(),
        )

    def score(self, user: UserRow, tracks_C: np.ndarray, moment_us: int) -> np.ndarray:
        """Probabilities (C,) of tracks of the catalogue, in their order."""
        return self._scores(self.catalogue, user, tracks_C, moment_us)

    def _scores(
        self, catalogue: Catalogue, user: UserRow, tracks_C: np.ndarray, moment_us: int
    ) -> np.ndarray:
        if len(tracks_C) == 0:
            return np.zeros(0, dtype=np.float32)
        if catalogue.fast is None:
            with torch.inference_mode():
                logits_C = self.model(self._batch(catalogue, [user], [tracks_C], moment_us))
                return torch.sigmoid(logits_C).numpy()
        numbers_CN = _read_numbers(catalogue, [user], [len(tracks_C)], tracks_C, moment_us)
        logits_C = catalogue.fast.logits(user.track_ids_L, tracks_C, numbers_CN)
        return torch.sigmoid(logits_C).numpy()

    def warm_up(self) -> None:
        """The first pass allocates and compiles: a request should not pay for it."""
        self.rank(0, self.items.track_ids_I[:WARM_UP_CANDIDATES].tolist())

    def batch(
        self, users: Sequence[UserRow], tracks: Sequence[np.ndarray], moment_us: int
    ) -> Batch:
        """What the model sees of each user's known tracks at a moment, one user after the other."""
        return self._batch(self.catalogue, users, tracks, moment_us)

    def _batch(
        self,
        catalogue: Catalogue,
        users: Sequence[UserRow],
        tracks: Sequence[np.ndarray],
        moment_us: int,
    ) -> Batch:
        counts = [len(own) for own in tracks]
        tracks_B = np.concatenate(tracks)
        lengths_B = np.repeat([len(user.track_ids_L) for user in users], counts)
        histories = [
            np.tile(user.track_ids_L, count) for user, count in zip(users, counts, strict=True)
        ]
        rows = track_rows(
            torch.from_numpy(tracks_B),
            torch.from_numpy(np.concatenate(histories)),
            torch.from_numpy(boundaries(lengths_B)),
            history_length=self.config.history_length,
            numbers_BN=_read_numbers(catalogue, users, counts, tracks_B, moment_us),
        )
        return make_batch(rows, catalogue.lookup)


def _read_numbers(
    catalogue: Catalogue,
    users: Sequence[UserRow],
    counts: Sequence[int],
    tracks_B: np.ndarray,
    moment_us: int,
) -> torch.Tensor | None:
    if catalogue.numbers is None:
        return None
    return torch.from_numpy(catalogue.numbers.read(users, counts, tracks_B, moment_us))

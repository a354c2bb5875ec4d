"""The retriever of a loaded release, and when and how to make it anew.

    loaded = ReleaseRetriever.load(workspace, release, ranker.items)
    loaded.retriever.candidates(...)
    if loaded.stale(ranker.items):      # in a watching thread, every few seconds
        loaded = loaded.refreshed(ranker.items)

Looking takes a few calls of `stat`. It is stale when the ranker's item table is another one (tracks
were assigned), when the table of tracks or an embedding was written, and when its play counts have
grown old. Then vectors are read of the tracks alone that had none; the index stays.

Shape suffixes: I tracks of the item table, N tracks of any number, D dims.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feature_repo import schema
from feature_repo.artifacts import MANIFEST, parquet_files, read_manifest
from feature_repo.errors import ArtifactError
from feature_repo.workspace import Workspace
from models.batch import ItemTable
from serving.releases import Release
from serving.retrieval.mme_sid_source import MmeSidSource
from serving.retrieval.retriever import Retriever
from serving.retrieval.track_facts import TrackFacts
from serving.retrieval.track_vectors import vector_source
from serving.retrieval.vector_index import VectorIndex

REFRESH_S = 900
"""Plays are at most so much older than what the online store holds."""

logger = logging.getLogger(__name__)

Signature = tuple[tuple[str, int, int], ...]
"""Path, time of change in ns and bytes of files."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Vectors:
    """The index of a generation's vectors, and what it was made from."""

    index: VectorIndex | None
    """None where the generation has no vectors, or none can be read."""
    without_N: np.ndarray
    """Ids, rising, of tracks that had no vector when `read_of` was read."""
    read_of: Signature
    """Of the embeddings' manifests."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReleaseRetriever:
    """A retriever and what it was made from. It never changes: `refreshed` makes another."""

    workspace: Workspace
    release: Release
    retriever: Retriever
    vectors: Vectors
    tracks: Signature
    """Of the files of the table of tracks."""
    mme_sid: MmeSidSource | None
    """The release's retriever model; None where it has none, or where what it proposes is read."""
    proposed_share: float
    """Of the model's tracks, those that may be proposed: the generation's that are listed."""
    made_at: float
    """On the monotonic clock."""

    @classmethod
    def load(
        cls,
        workspace: Workspace,
        release: Release,
        items: ItemTable,
        *,
        like: "ReleaseRetriever | None" = None,
    ) -> "ReleaseRetriever":
        """`items` as the release's ranker holds them.

        `like`: of a release that is loaded already; if it has the same generation, its index is
        shared, if it has the same retriever model, that. Where vectors cannot be read, as while
        `crescendo embed` replaces them, recommendations go on without: `retriever.sizes["vectors"]`
        is 0, the log has the reason.
        InputError where Faiss is not installed, ArtifactError where the generation is not whole or
        the retriever model cannot be run.
        """
        mme_sid = _read_mme_sid(workspace, release, like)
        if like is not None and like.release.generation_id != release.generation_id:
            like = None
        folder = workspace.generations / release.generation_id
        generation = read_manifest(folder, kind="generation", made_by="quantize", verify=False)
        families = list(generation.info["families"])
        tracks = _signature(parquet_files(workspace.tracks))  # first: a change meanwhile is seen
        facts = TrackFacts.read(workspace, release, items.track_ids_I)
        vectors = _read_vectors(workspace, release, items.track_ids_I[facts.listed_I], like)
        joint = families.index(schema.JOINT) if schema.JOINT in families else 0
        proposed_share = 1.0
        if mme_sid is not None:
            listed_N = items.track_ids_I[facts.listed_I]
            proposed_share = float(np.isin(mme_sid.track_ids_V, listed_N).mean())
        return cls(
            workspace=workspace,
            release=release,
            retriever=Retriever(items, joint, facts, vectors.index),
            vectors=vectors,
            tracks=tracks,
            mme_sid=mme_sid,
            proposed_share=proposed_share,
            made_at=time.monotonic(),
        )

    def stale(self, items: ItemTable) -> bool:
        """Whether `refreshed` would give something else."""
        return (
            items is not self.retriever.items
            or time.monotonic() - self.made_at > REFRESH_S
            or _signature(parquet_files(self.workspace.tracks)) != self.tracks
            or _signature(Path(path) for path, *_ in self.vectors.read_of) != self.vectors.read_of
        )

    def refreshed(self, items: ItemTable) -> "ReleaseRetriever":
        """With the ranker's items as they are now. Raises what `load` does; this one stays good."""
        return ReleaseRetriever.load(self.workspace, self.release, items, like=self)


def _read_mme_sid(
    workspace: Workspace, release: Release, like: ReleaseRetriever | None
) -> MmeSidSource | None:
    if release.retriever_model_id is None or release.candidates_view is not None:
        return None
    if (
        like is not None
        and like.mme_sid is not None
        and like.release.retriever_model_id == release.retriever_model_id
        and like.release.retriever_sha256 == release.retriever_sha256
    ):
        return like.mme_sid
    return MmeSidSource.load(workspace, release)


def _read_vectors(
    workspace: Workspace,
    release: Release,
    track_ids_N: np.ndarray,
    like: ReleaseRetriever | None,
) -> Vectors:
    """The index of these tracks: what `like` holds is kept, what it lacks is read."""
    none_N = track_ids_N[:0]
    held = Vectors(index=None, without_N=none_N, read_of=()) if like is None else like.vectors
    read_of: Signature = ()
    try:
        source = vector_source(workspace, release.generation_id)
        if source is None:
            return Vectors(index=None, without_N=none_N, read_of=())
        read_of = _signature(folder / MANIFEST for folder in source.folders.values())
        without_N = held.without_N if read_of == held.read_of else none_N
        known_N = none_N if held.index is None else held.index.track_ids
        lacking_N = np.setdiff1d(track_ids_N, np.concatenate([known_N, without_N]))
        if not len(lacking_N):
            return Vectors(index=held.index, without_N=without_N, read_of=read_of)
        found_N, x_ND = source.read(lacking_N)
    except (ArtifactError, OSError) as error:
        logger.warning("no vectors of new tracks can be read: %s", error)
        return Vectors(index=held.index, without_N=none_N, read_of=read_of)
    index = held.index
    if index is None:
        index = VectorIndex.build(found_N, x_ND) if len(found_N) else None
    elif len(found_N):
        index = index.grown(found_N, x_ND)
    without_N = np.union1d(without_N, np.setdiff1d(lacking_N, found_N))
    return Vectors(index=index, without_N=without_N, read_of=read_of)


def _signature(paths: Iterable[Path]) -> Signature:
    found = []
    for path in paths:
        try:
            status = path.stat()
            found.append((str(path), status.st_mtime_ns, status.st_size))
        except FileNotFoundError:  # in the middle of a replacement
            found.append((str(path), 0, 0))
    return tuple(found)

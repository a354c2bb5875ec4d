"""What can be looked up: listeners, tracks, their audio, and the tree of semantic IDs.

GET /v1/browse/release                           what is live, and its ID families
GET /v1/browse/users?digits=12                   users whose id begins so, last active first
GET /v1/browse/users/{user_id}                   the last listens, newest first
GET /v1/browse/search?text=kate                  tracks by title and artist
GET /v1/browse/tracks?ids=3&ids=7                what is known of these tracks
GET /v1/browse/tracks/{track_id}                 its IDs, and its neighbours in every family
GET /v1/browse/tracks/{track_id}/audio           the file, also in ranges
GET /v1/browse/codes/{family}?prefix=17          what lies under a prefix of codes

Answers are capped and are made in worker threads: rankings go on meanwhile.
"""

import threading
from datetime import UTC, datetime
from typing import Annotated

import numpy as np
from fastapi import APIRouter, HTTPException, Path, Query
from fastapi.responses import FileResponse
from pydantic import BaseModel

from feature_repo import schema
from feature_repo.store import read_online
from feature_repo.workspace import Workspace
from models.batch import ItemTable
from serving.live_releases import LiveReleases
from serving.page.catalogue import Catalogue, Track
from serving.page.code_tree import CodeTree
from serving.page.listeners import Listener, Listeners
from serving.page.loaded_files import LoadedFiles

FOUND = 20
"""Users or tracks that a search answers with."""
NEIGHBOURS = 10
TRACKS_SHOWN = 60
"""Tracks listed under a prefix; how many there are is said."""
TAGS_SHOWN = 3
TAGGED_TRACKS = 100
"""Tracks of a prefix whose tags are counted, evenly spread over it."""
MAX_IDS = 200
Int64 = Annotated[int, Query(ge=-(2**63), lt=2**63)]
Int64Path = Annotated[int, Path(ge=-(2**63), lt=2**63)]
ACTIONS = {code: name for name, code in schema.ACTION_CODES.items()}


class LiveRelease(BaseModel):
    release_id: str
    model: str
    families: list[str]
    levels: int
    tracks: int
    """Tracks of the release's generation."""
    titles: int
    """Tracks of the catalogue table; 0: tracks are shown by their number."""


class Listen(BaseModel):
    track: Track
    listened_at: datetime
    action: str


class History(BaseModel):
    user_id: int
    listens: list[Listen]
    """Newest first; empty for a user of whom nothing is known."""


class Neighbour(BaseModel):
    track: Track
    shared: int
    """Codes that the two IDs share from the front."""


class FamilyID(BaseModel):
    family: str
    codes: list[int]
    """Empty: the track lacks the modality."""
    neighbours: list[Neighbour]


class TrackIDs(BaseModel):
    release_id: str
    track: Track
    ids: list[FamilyID]


class Child(BaseModel):
    code: int
    tracks: int
    tags: list[str]


class Codes(BaseModel):
    release_id: str
    family: str
    prefix: list[int]
    found: int
    """Tracks under the prefix."""
    tags: list[str]
    """Those that tell its tracks from the others."""
    children: list[Child]
    """The codes of the next level; none under a whole ID."""
    tracks: list[Track]
    """The first `TRACKS_SHOWN`, in the order of their IDs."""


class Trees:
    """The code tree of the live release's items, built again when they are others."""

    def __init__(self, live: LiveReleases) -> None:
        self._live = live
        self._building = threading.Lock()
        self._tree: CodeTree | None = None

    def now(self) -> tuple[str, CodeTree]:
        """The release and its tree."""
        ranker = self._live.current
        with self._building:
            if self._tree is None or self._tree.items is not ranker.items:
                self._tree = CodeTree(ranker.items, ranker.config.families)
            return ranker.release.release_id, self._tree


def browse_router(
    workspace: Workspace, live: LiveReleases, catalogue: LoadedFiles[Catalogue]
) -> APIRouter:
    """The routes around one process's releases and tables."""
    router = APIRouter(prefix="/v1/browse")
    listeners = LoadedFiles(workspace.events, lambda: Listeners.load(workspace))
    trees = Trees(live)

    @router.get("/release")
    def get_release() -> LiveRelease:
        ranker = live.current
        return LiveRelease(
            release_id=ranker.release.release_id,
            model=ranker.config.model,
            families=list(ranker.config.families),
            levels=ranker.config.levels,
            tracks=len(ranker.items.track_ids_I),
            titles=len(catalogue.now()),
        )

    @router.get("/users")
    def find_users(
        digits: Annotated[str, Query(pattern=r"^-?[0-9]{0,19}$")] = "",
    ) -> list[Listener]:
        return listeners.now().search(digits, FOUND)

    @router.get("/users/{user_id}")
    def get_user(user_id: Int64Path) -> History:
        columns = schema.SEQUENCE_TRACK_IDS, schema.SEQUENCE_TIMESTAMPS, schema.SEQUENCE_ACTIONS
        features = [f"{schema.USER_SEQUENCE}:{column}" for column in columns]
        row = read_online(live.current.store, schema.USER_ID, [user_id], features)
        track_ids, times_us, actions = (list(row[column][0] or ())[::-1] for column in columns)
        listens = [
            Listen(
                track=track,
                listened_at=datetime.fromtimestamp(time_us / 1e6, UTC),
                action=ACTIONS[action],
            )
            for track, time_us, action in zip(
                catalogue.now().tracks(track_ids), times_us, actions, strict=True
            )
        ]
        return History(user_id=user_id, listens=listens)

    @router.get("/search")
    def find_tracks(text: Annotated[str, Query(min_length=1, max_length=100)]) -> list[Track]:
        return catalogue.now().search(text, FOUND)

    @router.get("/tracks")
    def get_tracks(ids: Annotated[list[Int64], Query(max_length=MAX_IDS)]) -> list[Track]:
        return catalogue.now().tracks(ids)

    @router.get("/tracks/{track_id}")
    def get_track(track_id: Int64Path) -> TrackIDs:
        release_id, tree = trees.now()
        check_known(tree.items, track_id)
        titles = catalogue.now()
        (track,) = titles.tracks([track_id])
        ids = []
        for family in tree.families:
            shared = dict(tree.neighbours(family, track_id, NEIGHBOURS))
            near = [
                Neighbour(track=other, shared=shared[other.track_id])
                for other in titles.tracks(list(shared))
            ]
            codes = list(tree.codes(family, track_id))
            ids.append(FamilyID(family=family, codes=codes, neighbours=near))
        return TrackIDs(release_id=release_id, track=track, ids=ids)

    @router.get("/tracks/{track_id}/audio", response_class=FileResponse)
    def get_audio(track_id: Int64Path) -> FileResponse:
        found = catalogue.now().audio_file(track_id)
        if found is None:
            raise HTTPException(404, "there is no audio of this track")
        path, media_type = found
        return FileResponse(path, media_type=media_type)

    @router.get("/codes/{family}")
    def get_codes(
        family: str, prefix: Annotated[list[Int64] | None, Query(max_length=64)] = None
    ) -> Codes:
        prefix = prefix or []
        release_id, tree = trees.now()
        if family not in tree.families:
            raise HTTPException(404, f"no such ID family; there are {', '.join(tree.families)}")
        if len(prefix) > tree.levels:
            raise HTTPException(404, f"an ID has {tree.levels} codes, the prefix {len(prefix)}")
        titles = catalogue.now()
        under = tree.tracks(family, prefix)
        following = tree.children(family, prefix) if len(prefix) < tree.levels else ()
        children = [
            Child(code=code, tracks=len(tracks), tags=_tags(titles, tracks))
            for code, tracks in following
        ]
        return Codes(
            release_id=release_id,
            family=family,
            prefix=prefix,
            found=len(under),
            tags=_tags(titles, under),
            children=children,
            tracks=titles.tracks(under[:TRACKS_SHOWN].tolist()),
        )

    return router


def _tags(catalogue: Catalogue, track_ids_N: np.ndarray) -> list[str]:
    return catalogue.tags(track_ids_N[:: -(-len(track_ids_N) // TAGGED_TRACKS) or 1], TAGS_SHOWN)


def check_known(items: ItemTable, track_id: int) -> None:
    """404 for a track without IDs in the release's generation."""
    if not items.knows(np.array([track_id]))[0]:
        raise HTTPException(404, f"the release does not know track {track_id}")

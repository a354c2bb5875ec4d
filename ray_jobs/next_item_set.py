"""Next-item sets: every user's listens up to the last one, as the feature store knew them.

    manifest = next_item_set(workspace, NextItemOptions(length=50))
    data = read_next_items(workspace.training_sets / manifest.id)    # models.next_items.NextItems

Writes `training_sets/<id>/`: `users.parquet` (user_id, event_id, track_id and event_timestamp of
the user's last listen, and `seq_track_ids`, the listens before it, oldest first) and
`items.safetensors` (`track_ids`: the catalogue, and what was listened to beside it). Whoever trains
on it needs no feature store.

The histories come from ONE point-in-time join on `user_sequence` at the moment of each user's last
listen. So they are what a server would have read right before it: what is as late as the listen
itself, or reached the log after it, is not in them. The last listen is the test target, the newest
of its history the validation target (`models/next_items.py`).

Two bounds, both counted in the manifest's `info`. A history is as long as the view's lists: what
came before is neither learned from nor masked in a ranking (`cut_histories`: users whose list is
full). And music repeats: a target that is in its own history cannot be ranked where the history is
masked, so such a user is left out of that part of the evaluation (`repeated_valid`,
`repeated_test`).
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

from feature_repo import schema
from feature_repo.artifacts import (
    Manifest,
    content_id,
    parquet_files,
    read_manifest,
    write_artifact,
)
from feature_repo.errors import ArtifactError, InputError
from feature_repo.workspace import Workspace
from models.next_items import PARTS, NextItems
from ray_jobs.progress import log, step
from ray_jobs.sequences import events_id

KIND = "next_item_set"
USERS_FILE, ITEMS_FILE = "users.parquet", "items.safetensors"


@dataclass(frozen=True, kw_only=True)
class NextItemOptions:
    length: int = 50
    """Listens of the longest history that a model will read."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise InputError(f"length must be at least 1, got {self.length}")


def next_item_set(workspace: Workspace, options: NextItemOptions) -> Manifest:
    """The manifest of the set, which is built if it does not exist yet.

    InputError where the view's lists are shorter than `length`, or nobody listened to anything;
    ArtifactError where the sequences are older than the event log.
    """
    workspace.require(workspace.tracks, "ingest --source KIND --path FOLDER")
    sequence = read_manifest(
        workspace.feature_source(schema.USER_SEQUENCE), kind="feature_source", made_by="sequences"
    )
    log_now = events_id(workspace)
    if sequence.parents["events"] != log_now:
        raise ArtifactError(
            f"the sequences were made from {sequence.parents['events']}, the event log is "
            f"{log_now} now; run `crescendo sequences` and `crescendo publish`"
        )
    track_ids = _catalogue(workspace)
    parents = {"events": log_now, "sequences": sequence.files}
    held = _list_length(workspace, options.length)
    set_id = content_id("ni", parents, held, asdict(options), track_ids.tobytes())
    folder = workspace.training_sets / set_id
    if folder.exists():
        return read_manifest(folder, kind=KIND, made_by="sasrec")
    listens = _last_listens(parquet_files(workspace.feature_source(schema.USER_SEQUENCE)))
    manifest = Manifest(
        kind=KIND,
        id=set_id,
        parents=parents,
        options=asdict(options),
        info={"history_length": held},
    )
    with write_artifact(folder, manifest) as partial:
        _write_users(workspace, listens, partial / USERS_FILE)
        listened = pq.read_table(partial / USERS_FILE, columns=["track_id", "seq_track_ids"])
        heard = pc.list_flatten(listened["seq_track_ids"]).to_numpy()
        known = np.unique(np.concatenate([track_ids, heard, listened["track_id"].to_numpy()]))
        save_file({"track_ids": known}, partial / ITEMS_FILE)
        lengths = pc.list_value_length(listened["seq_track_ids"]).fill_null(0).to_numpy()
        data = read_next_items(partial)
        manifest.rows = {
            "users": len(listens),
            "tracks": data.items,
            "listens": int(data.lengths_U.sum()),
        }
        for part in PARTS:
            held_out = data.held_out(part)
            manifest.rows[part] = len(held_out.users_V)
            manifest.info[f"repeated_{part}"] = held_out.repeated
        manifest.info["cut_histories"] = int((lengths == held).sum())
        manifest.info["last_listen"] = listens[schema.EVENT_TIMESTAMP].max().isoformat()
    log.info("next-item set", id=set_id, **manifest.rows)
    return manifest


def trainable_set(workspace: Workspace, length: int) -> tuple[Manifest, NextItems]:
    """The set and its arrays; InputError also where it has nothing to learn from or to rank."""
    made = next_item_set(workspace, NextItemOptions(length=length))
    data = read_next_items(workspace.training_sets / made.id)
    for name, rows in (
        ("users with two training listens", (data.lengths_U >= 2).sum()),
        ("validation targets that can be ranked", made.rows["valid"]),
        ("test targets that can be ranked", made.rows["test"]),
    ):
        if not rows:
            raise InputError(f"next-item set {made.id} has no {name}; ingest more events")
    return made, data


def read_next_items(folder: Path) -> NextItems:
    """The set as numpy arrays, split into training, validation and test."""
    users = pq.read_table(folder / USERS_FILE)
    sequences = users[schema.SEQUENCE_TRACK_IDS].combine_chunks()
    lengths_U = pc.list_value_length(sequences).fill_null(0).to_numpy().astype(np.int64)
    history_P = sequences.flatten().to_numpy()
    # The last listen behind each history.
    all_P = np.insert(history_P, np.cumsum(lengths_U), users[schema.TRACK_ID].to_numpy())
    return NextItems.from_packed(
        all_P,
        lengths_U + 1,
        user_ids_U=users[schema.USER_ID].to_numpy(),
        track_ids=load_file(folder / ITEMS_FILE)["track_ids"],
    )


def _catalogue(workspace: Workspace) -> np.ndarray:
    tracks = pyarrow.dataset.dataset(workspace.tracks, format="parquet")
    return np.unique(tracks.to_table(columns=[schema.TRACK_ID])[schema.TRACK_ID].to_numpy())


def _list_length(workspace: Workspace, length: int) -> int:
    """Listens in the lists of the view as it was published: at least `length`, else InputError."""
    from feature_repo.store import find_view, open_store

    view = find_view(open_store(workspace), schema.USER_SEQUENCE)
    held = int(view.tags[schema.SEQUENCE_LENGTH_TAG])
    if held < length:
        raise InputError(
            f"length={length}: view {schema.USER_SEQUENCE} was published with lists of {held} "
            f"listens; run `crescendo sequences --length {length}` and `crescendo publish`, or "
            f"give a length of at most {held}"
        )
    return held


def _last_listens(files: list[Path]) -> pd.DataFrame:
    """user_id, event_id, track_id, event_timestamp: each user's last listen, by user.

    Of listens at one moment the one with the highest event_id, which a sequence has last too.
    """
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        last = connection.execute(
            f"""
            SELECT
                user_id,
                arg_max(event_id, (listened_at, event_id)) AS event_id,
                arg_max(track_id, (listened_at, event_id)) AS track_id,
                max(listened_at) AS {schema.EVENT_TIMESTAMP}
            FROM read_parquet($files)
            GROUP BY user_id
            ORDER BY user_id
            """,
            {"files": [str(path) for path in files]},
        ).df()
    if last.empty:
        raise InputError("the event log holds no listen: there is no next item to learn")
    return last


def _write_users(workspace: Workspace, listens: pd.DataFrame, path: Path) -> None:
    from feature_repo.offline import point_in_time
    from feature_repo.store import open_store

    with step("point-in-time join", users=len(listens)):
        tables = point_in_time(
            open_store(workspace), listens, schema.USER_SEQUENCE, [schema.SEQUENCE_TRACK_IDS]
        )
        first = next(tables)
        with pq.ParquetWriter(path, first.schema) as writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table.cast(first.schema))

"""The release that `benchmarks/serving.py` measures, and the same rows in stock Feast.

Tracks with random semantic IDs of three families (3 codes of 128), users with 50 random listens,
and MCCA (d' = 64) with weights as initialised: what a ranking costs does not depend on them. Made
by the platform's own functions, without Ray; nothing outside the given folders is written.

Shape suffixes: I tracks, F families, L levels, T listens.
"""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from feast import FeatureStore
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_weights

from benchmarks.online_reads import repository
from feature_repo import schema
from feature_repo.artifacts import Manifest, content_id, write_artifact
from feature_repo.store_settings import PACKED_REDIS, STORE_SETTINGS
from feature_repo.workspace import Workspace
from models.ranker_config import RankerConfig
from models.rankers import build_ranker
from ray_jobs.generation_table import IDS_FILE, ids_table
from ray_jobs.publish import publish
from ray_jobs.sequences import SequenceOptions, sequences
from ray_jobs.training_set import TrainingSetOptions, training_set
from ray_jobs.warm_up_scores import write_warm_up
from serving.ranker import ReleaseRanker
from serving.releases import live_release, make_release

FAMILIES, LEVELS, CODES = ("text", "audio", "joint"), 3, 128
LISTENS = 50
LABELLED_SHARE = 0.02
"""Of the events: the training set is only there because a model has one."""
LOG_DAYS = 2


def build(folder: Path, redis: str, *, tracks: int, users: int, models: int = 1) -> Workspace:
    """A workspace with a live release, its online rows in the Redis at `redis`.

    `models`: of the same shape, with weights of their own; the last one is live.
    """
    workspace = Workspace(folder)
    online = {"type": PACKED_REDIS, "connection_string": redis}
    folder.mkdir(parents=True)
    settings = yaml.safe_dump({**STORE_SETTINGS, "online_store": online})
    (folder / "feature_store.yaml").write_text(settings)
    random = np.random.default_rng(0)
    _write_events(workspace, random, tracks, users)
    _write_generation(workspace, random, tracks)
    sequences(workspace, SequenceOptions(length=LISTENS))
    publish(workspace)
    data = training_set(workspace, TrainingSetOptions())
    for seed in range(models):
        _write_model(workspace, data, seed)
    make_release(workspace)
    return workspace


def _write_events(
    workspace: Workspace, random: np.random.Generator, tracks: int, users: int
) -> None:
    events = users * (LISTENS + 10)
    now_us = int(datetime.now(UTC).timestamp() * 1e6)
    moments = np.sort(now_us - random.integers(10**6, LOG_DAYS * 86_400 * 10**6, events))
    actions = np.full(events, "play", dtype=object)
    labelled = random.random(events) < LABELLED_SHARE
    actions[labelled] = random.choice(["complete", "skip"], labelled.sum())
    columns = {
        "event_id": np.arange(events),
        "user_id": np.tile(np.arange(1, users + 1), LISTENS + 10),
        "track_id": random.integers(1, tracks + 1, events),
        "event_timestamp": pa.array(moments, type=schema.TIMESTAMP),
        "action": actions.tolist(),
    }
    table = pa.table(
        {
            field.name: columns.get(field.name, pa.nulls(events, field.type))
            for field in schema.EVENTS
        },
        schema=schema.EVENTS,
    )
    workspace.events.mkdir(parents=True)
    pq.write_table(table, workspace.events / "part-0.parquet")


def _write_generation(workspace: Workspace, random: np.random.Generator, tracks: int) -> None:
    track_ids_I = np.arange(1, tracks + 1)
    codes = {
        family: (track_ids_I, torch.from_numpy(random.integers(0, CODES, (tracks, LEVELS))))
        for family in FAMILIES
    }
    manifest = Manifest(
        kind="generation",
        id=content_id("gen", tracks),
        parents={"codebooks": {}},
        info={"families": list(FAMILIES), "levels": LEVELS, "codes": CODES},
    )
    with write_artifact(workspace.generations / manifest.id, manifest) as partial:
        pq.write_table(ids_table(track_ids_I, codes), partial / IDS_FILE)


def _write_model(workspace: Workspace, data: Manifest, seed: int) -> None:
    """As `crescendo train` does, less the training."""
    data_folder = workspace.training_sets / data.id
    items = load_file(data_folder / "items.safetensors")
    config = RankerConfig(
        model="mcca",
        id_rows=1 + len(items["vocabulary_track_ids"]),
        families=FAMILIES,
        levels=LEVELS,
        codes=CODES,
        history_length=LISTENS,
    )
    torch.manual_seed(seed)
    manifest = Manifest(
        kind="model",
        id=content_id("model", data.id, asdict(config), seed),
        parents={"training_set": data.id, "generation": data.parents["generation"]},
        options={"model": "mcca", "features": [], "ranker": asdict(config)},
        info={"features": data.info["features"]},
    )
    with write_artifact(workspace.models / manifest.id, manifest) as partial:
        save_weights(build_ranker(config).state_dict(), partial / "model.safetensors")
        vocabulary = {
            "track_ids": items["vocabulary_track_ids"],
            "train_counts": items["vocabulary_train_counts"],
        }
        save_file(vocabulary, partial / "vocabulary.safetensors")
        write_warm_up(partial, data_folder, manifest)


def stock_store(folder: Path, redis: str, workspace: Workspace, users: int) -> FeatureStore:
    """The release's rows in a Feast repository with Feast's own Redis store, under new keys."""
    ranker = ReleaseRanker(workspace, live_release(workspace))
    user_ids = np.arange(1, users + 1)
    histories = [row.track_ids_L for row in ranker.user_rows.read(user_ids.tolist())]
    items = ranker.items
    codes = {
        schema.sid_column(family): _lists(list(items.codes_IFL[:, number]))
        for number, family in enumerate(FAMILIES)
    }
    rows = {
        "listens": _table("user_id", user_ids, {schema.SEQUENCE_TRACK_IDS: _lists(histories)}),
        "semantic_ids": _table("track_id", items.track_ids_I, codes),
    }
    return repository(folder, {"type": "redis", "connection_string": redis}, rows)


def _table(key: str, ids: np.ndarray, columns: dict[str, pa.Array]) -> pa.Table:
    now = pa.array([datetime.now(UTC)] * len(ids), type=schema.TIMESTAMP)
    return pa.table({key: ids, schema.EVENT_TIMESTAMP: now, **columns})


def _lists(rows: Sequence[np.ndarray]) -> pa.Array:
    offsets = np.cumsum([0, *(len(row) for row in rows)])
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(rows)))

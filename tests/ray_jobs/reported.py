"""A workspace to be reported on, for the tests of this folder: its pieces, and all of them.

Fixtures: `workspace` (empty) and `full` (every piece, and the study in it).
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file

from feature_repo.artifacts import Manifest, write_artifact, write_json
from feature_repo.workspace import Workspace
from models.psrq import PsrqOptions, fit
from models.sid_quality import quality
from ray_jobs.contract import SourceTables, write_contract_tables
from ray_jobs.evaluate import score_metrics
from ray_jobs.generation_table import IDS_FILE, ids_table
from ray_jobs.study import StudyOptions, study
from ray_jobs.train import TrainOptions

GENERATION = "gen-aaaaaaaaaaaa"
TRACKS, CODES, TEST_ROWS = 120, 8, 600


def ingested(workspace: Workspace, source: str = "shop") -> None:
    """1,200 events over 40 days; two tracks and one event are rejected."""
    random = np.random.default_rng(0)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    catalogue = pa.table(
        {
            "track_id": [*range(TRACKS), 0, TRACKS],
            "title": [*(f"tune {n}" for n in range(TRACKS)), "again", None],
        }
    )
    log = pa.table(
        {
            "user_id": random.integers(0, 50, 1201),
            "track_id": [*random.integers(0, TRACKS, 1200), 10**6],
            "event_timestamp": [
                start + timedelta(minutes=int(m)) for m in random.integers(0, 60 * 24 * 40, 1201)
            ],
            "action": random.choice(["complete", "skip", "play"], 1201).tolist(),
        }
    )
    tables = SourceTables(tracks=catalogue, events=log)
    write_contract_tables(workspace, tables, source=source, max_rejected_share=0.5)


def quantized(workspace: Workspace, families: tuple[str, ...] = ("text", "audio")) -> Manifest:
    """A generation of real codebooks on random clusters. Returns its manifest."""
    random = np.random.default_rng(1)
    codes, measured, codebook_ids = {}, {}, {}
    for place, family in enumerate(families):
        centres = random.normal(size=(12, 6)) * 3
        vectors = centres[random.integers(0, 12, TRACKS)] + random.normal(size=(TRACKS, 6))
        x_ND = torch.from_numpy(vectors.astype(np.float32))
        codebook, codes_NL, _ = fit(x_ND, PsrqOptions(levels=3, codes=CODES, iterations=5))
        codes[family] = (np.arange(TRACKS), codes_NL)
        labels = random.integers(0, 4, TRACKS) if place == 0 else None
        measured[family] = quality(x_ND, codes_NL, codebook, reference_N=labels)
        codebook_ids[family] = f"codebook-{place}"
        book = Manifest(
            kind="codebook",
            id=codebook_ids[family],
            parents={"embeddings": {family: "some-encoder"}},
            info={"settings": codebook.settings()},
        )
        with write_artifact(workspace.codebooks / book.id, book):
            pass
    manifest = Manifest(
        kind="generation",
        id=GENERATION,
        parents={"codebooks": codebook_ids},
        info={"families": list(families), "levels": 3, "codes": CODES, "quality": measured},
    )
    with write_artifact(workspace.generations / GENERATION, manifest) as partial:
        pq.write_table(ids_table(np.arange(TRACKS), codes), partial / IDS_FILE)
    return manifest


def write_model(workspace: Workspace, options: TrainOptions) -> dict[str, Any]:
    """A model folder with made-up scores, better for mcca. Returns what training would."""
    model_id = f"model-{len(options.model):02d}{options.model[:2].encode().hex()}{options.seed}"
    truth = np.random.default_rng(2).integers(0, 2, TEST_ROWS)
    noise = np.random.default_rng((3, options.seed)).normal(size=TEST_ROWS)
    strength = {"mcca": 2.0}.get(options.model, 0.7)
    scored = pa.table(
        {
            "impression_id": np.arange(TEST_ROWS),
            "user_id": np.arange(TEST_ROWS) % 30,
            "label": truth,
            "score": 1 / (1 + np.exp(-(strength * (truth - 0.5) + noise))),
            "train_impressions": np.arange(TEST_ROWS) % 150,
            "user_train_impressions": np.arange(TEST_ROWS) % 30,
            "history_length": np.arange(TEST_ROWS) % 21,
        }
    )
    curve = [
        {"epoch": epoch, "train_loss": 0.7 - epoch / 10, "validation_auc": 0.5 + epoch / 10}
        for epoch in (0, 1, 1, 2)
    ]
    metrics = score_metrics(scored)
    manifest = Manifest(
        kind="model",
        id=model_id,
        parents={"training_set": "ts-1", "generation": GENERATION},
        options={
            "model": options.model,
            "seed": options.seed,
            "impressions": {"label_rule": "complete"},
        },
        info={"metrics": metrics, "rows_per_second": 1234.5},
    )
    with write_artifact(workspace.models / model_id, manifest) as partial:
        pq.write_table(scored, partial / "test_scores.parquet")
        lines = "".join(json.dumps(row) + "\n" for row in curve)
        (partial / "metrics.jsonl").write_text(lines)
        save_file({"weight": np.zeros(3, np.float32)}, partial / "model.safetensors")
    trained = {"best_epoch": 1, "epochs": 3, "validation_auc": 0.6, "seconds": 1.0}
    return {"model_id": model_id, **metrics, **trained, "rows_per_second": 1234.5}


def write_models(
    workspace: Workspace, options: Sequence[TrainOptions], parallel: int
) -> list[dict[str, Any]]:
    return [write_model(workspace, one) for one in options]


def studied(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The real study, over made-up models."""
    monkeypatch.setattr("ray_jobs.study.train_all", write_models)
    return study(workspace, StudyOptions(seeds=3))


def released(workspace: Workspace, model_id: str) -> None:
    release = {
        "release_id": "release-bbbbbbbbbbbb",
        "model_id": model_id,
        "model_sha256": "0" * 64,
        "generation_id": GENERATION,
        "feature_service": "ranker_release_bbbbbbbbbbbb",
        "created_at": "2026-02-03T04:05:06.7+00:00",
        "replaces": None,
    }
    write_json(workspace.releases / "release-bbbbbbbbbbbb.json", release)
    (workspace.releases / "CURRENT").write_text("release-bbbbbbbbbbbb\n")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def full(workspace, monkeypatch):
    """A workspace with every piece, and the study in it."""
    ingested(workspace)
    quantized(workspace)
    result = studied(workspace, monkeypatch)
    released(workspace, result["models"]["mcca"]["model_ids"][0])
    write_ceiling(workspace, "ts-1")
    return workspace, result


def write_ceiling(workspace, training_set):
    ceiling = {"training_set": training_set, "auc": 0.9876, "cold_auc": 0.9123}
    write_json(workspace.reports / "ceiling.json", ceiling)

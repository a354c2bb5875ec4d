"""The whole platform on a small world of real tunes and simulated listeners.

    crescendo demo

Writes the world (`demo_world/`), then runs every step of the pipeline on it, makes the better
model the live release and writes the report.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from feature_repo.artifacts import read_manifest, write_json
from feature_repo.workspace import Workspace
from models.ranking_metrics import auc
from ray_jobs.demo_world.world import DemoWorldOptions, generate
from ray_jobs.ingest import IngestOptions
from ray_jobs.pipeline import PipelineOptions, run_pipeline
from ray_jobs.progress import step
from ray_jobs.quantize_options import QuantizeOptions
from ray_jobs.slices import COLD_BELOW
from ray_jobs.study import StudyOptions


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    world: DemoWorldOptions = field(default_factory=DemoWorldOptions)
    quantize: QuantizeOptions = field(default_factory=lambda: QuantizeOptions(codes=32))
    """A few hundred tunes: with 128 codes a level, most codes would hold two or three of them."""
    study: StudyOptions = field(default_factory=StudyOptions)


def demo(workspace: Workspace, options: DemoOptions) -> dict[str, Any]:
    """Returns what the pipeline returned, and `ceiling`: how well the true taste itself ranks."""
    with step("demo world", tunes=options.world.tunes, listeners=options.world.listeners):
        world = generate(workspace.demo_world, options.world)
    source = IngestOptions(source="demo-world", path=workspace.demo_world)
    steps = PipelineOptions(ingest=source, quantize=options.quantize, study=options.study)
    result = run_pipeline(workspace, steps)
    model_ids = next(iter(result["study"]["models"].values()))["model_ids"]
    result["world"] = world
    result["ceiling"] = ceiling(workspace, model_ids[0])
    write_json(workspace.reports / "ceiling.json", result["ceiling"])
    return result


def ceiling(workspace: Workspace, model_id: str) -> dict[str, Any]:
    """AUC of the listeners' true probabilities on the test rows that the models were judged by."""
    manifest = read_manifest(workspace.models / model_id, kind="model", made_by="demo")
    scored = pq.read_table(workspace.models / model_id / "test_scores.parquet").to_pandas()
    truth = pd.read_parquet(workspace.demo_world / "truth" / "events.parquet")
    joined = scored.merge(truth, on="event_id", validate="one_to_one")
    labels, chances = joined["label"].to_numpy(), joined["true_probability"].to_numpy()
    cold = joined["train_impressions"].to_numpy() < COLD_BELOW
    cold_labels = labels[cold]
    return {
        "training_set": manifest.parents["training_set"],
        "auc": auc(labels, chances),
        "cold_auc": auc(cold_labels, chances[cold]) if len(np.unique(cold_labels)) == 2 else None,
    }

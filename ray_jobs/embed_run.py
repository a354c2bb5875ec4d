"""Runs the stages of the embedding job on Ray Data, and says how it goes.

`prepare` (decoding, tokenising) and `encode` are actor pools of their own: Ray joins stages that
ask for the same resources into one process unless both are pools, and a GPU would wait for the
decoder. An encoder without a `prepare` has one stage for both. Ray stops a stage whose results the
next one has not taken yet, so memory holds the chunks in flight and no more.

What passes through the driver is a line of counts for each part that a worker has written.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from feature_repo.errors import InputError
from ray_jobs.embed_options import EmbedOptions
from ray_jobs.encoders.pipeline import (
    CHUNK,
    Encoder,
    EncoderActor,
    Preparer,
    has_cpu_stage,
    raise_failure,
    write_part,
)
from ray_jobs.progress import LOG_EVERY_S, log
from ray_jobs.ray_data import ray_data

CPU_ACTORS = 2
SOUND_CHUNK, OTHER_CHUNK = 32, 512
"""Tracks that go through the stages together: enough windows or texts to sort and pack, and few
enough bytes: 32 tracks have 184 MB of samples at most."""
TRACK_BYTES, STORE_PART = 5_760_000, 3
"""Samples of a track at most, 120 s of 24 kHz; and Ray Data lets one stage fill a third of the
object store, counting the chunks that are being decoded: in a small store all but a few decoders
stand still."""
ACTOR_CPUS, DECODER_CPUS, WRITERS_CPUS = 0.4, 0.4, 0.1
"""Logical CPUs of each, and of the writers of an actor: whole ones wait for each other for ever on
a small machine."""
WRITERS = 4
"""Parts of an actor that are written at a time. A write takes milliseconds, and Ray Data tens of
them to hand out the next: one writer falls behind a GPU that ends 19 chunks a second."""
IN_FLIGHT, GPU_IN_FLIGHT = 2, 4
"""Chunks that an actor has been given: one at work, one waiting, whose windows a model's actor
copies meanwhile in a thread of its own. More only fill memory, unless a chunk takes a GPU less time
(32 previews 50 ms) than Ray Data takes to hand the next one out."""


@dataclass(frozen=True, kw_only=True)
class Pools:
    """How many processes each stage has."""

    actors: int
    decoders: int
    gpu: bool


def chunk_size(encoder: Encoder, options: EmbedOptions) -> int:
    sound = "audio_uri" in encoder.columns
    return options.batch_size or (SOUND_CHUNK if sound else OTHER_CHUNK)


def pools(encoder: Encoder, options: EmbedOptions, *, cpus: float, gpus: int) -> Pools:
    """What the options ask for, or what fits a Ray with so many CPUs and GPUs.

    InputError if it does not fit: Ray would wait for ever without a word.
    """
    two = has_cpu_stage(encoder)
    gpu = bool(gpus and two) if options.gpu is None else options.gpu
    actors = options.actors or (max(1, gpus) if gpu else CPU_ACTORS)
    if gpu and actors > gpus:
        raise InputError(f"actors={actors} with a GPU each: Ray has {gpus}; run with --cpu")
    left = int((cpus - actors * (ACTOR_CPUS + WRITERS_CPUS)) / DECODER_CPUS)
    decoders = options.decoders or max(1, min(left, int(cpus) - actors if gpu else 1))
    if decoders * two > left:
        raise InputError(
            f"actors={actors}, decoders={decoders}: Ray has {cpus:g} CPUs, of which an actor books "
            f"{ACTOR_CPUS + WRITERS_CPUS:g} and a decoder {DECODER_CPUS:g}"
        )
    return Pools(actors=actors, decoders=decoders, gpu=gpu)


def store_bytes(encoder: Encoder, options: EmbedOptions) -> int:
    """What the object store needs for the decoders of this machine's GPUs not to wait for it.

    Nothing without a GPU: a CPU takes seconds for a chunk, and memory is dearer.
    """
    import torch

    gpus = torch.cuda.device_count()
    gpu = bool(gpus) if options.gpu is None else options.gpu
    decoders, actors = options.decoders or os.cpu_count() or 1, options.actors or gpus
    sizes = Pools(actors=actors, decoders=decoders, gpu=gpu)
    return flight_bytes(encoder, sizes, chunk_size(encoder, options))


def flight_bytes(encoder: Encoder, pools: Pools, chunk: int) -> int:
    """Of an object store in which each decoder has a chunk of sound, and each GPU its chunks."""
    if not pools.gpu or not has_cpu_stage(encoder) or "audio_uri" not in encoder.columns:
        return 0
    return STORE_PART * (pools.decoders + GPU_IN_FLIGHT * pools.actors) * chunk * TRACK_BYTES


def connected_pools(encoder: Encoder, options: EmbedOptions) -> Pools:
    """`pools` of the Ray that is connected."""
    import ray

    has = ray.cluster_resources()
    return pools(encoder, options, cpus=has.get("CPU", 0.0), gpus=int(has.get("GPU", 0)))


def dataset(todo: Path, folder: Path, encoder: Encoder, pools: Pools) -> Any:
    """The stages as a Ray Dataset of `FACTS`, a row a part in `folder`; nothing runs yet."""
    data = ray_data()
    listed = pq.ParquetFile(todo).metadata
    chunks = listed.num_row_groups
    # From memory, not by read_parquet, whose tasks start a worker on every logical CPU and take
    # five seconds on two cores before the first row moves.
    stages = data.from_arrow([pa.table({CHUNK: [chunk]}) for chunk in range(chunks)])
    rows = 1
    if has_cpu_stage(encoder):
        stages = stages.map_batches(
            Preparer,
            fn_constructor_args=(encoder, todo),
            batch_format="pyarrow",
            batch_size=rows,
            compute=_pool(min(pools.decoders, chunks), in_flight=IN_FLIGHT, calls=1),
            num_cpus=DECODER_CPUS,
        )
        # Whole chunks again, where Ray has split a large one into blocks.
        rows = listed.row_group(0).num_rows
    stages = stages.map_batches(
        EncoderActor,
        fn_constructor_args=(encoder, todo, pools.gpu),
        batch_format="pyarrow",
        batch_size=rows,
        compute=_pool(
            min(pools.actors, chunks), in_flight=GPU_IN_FLIGHT if pools.gpu else IN_FLIGHT, calls=2
        ),
        num_cpus=ACTOR_CPUS,
        num_gpus=int(pools.gpu),
    )
    return stages.map_batches(
        write_part,
        fn_kwargs={"folder": folder},
        batch_format="pyarrow",
        batch_size=None,
        compute=data.TaskPoolStrategy(size=min(WRITERS * pools.actors, chunks)),
        num_cpus=WRITERS_CPUS / WRITERS,
    )


def _pool(size: int, *, in_flight: int, calls: int) -> Any:
    """`calls`: chunks that an actor has at work, in a thread each: `encoders/turns.py` says how."""
    return ray_data().ActorPoolStrategy(
        size=size,
        max_tasks_in_flight_per_actor=in_flight,
        max_concurrent_calls_per_actor=calls,
        enable_true_multi_threading=calls > 1,
    )


def written_parts(
    todo: Path, folder: Path, encoder: Encoder, pools: Pools
) -> Iterator[dict[str, Any]]:
    """Runs the stages; yields FACTS of each part once it lies in `folder`.

    An error of ours that a worker raised comes as itself, and not as Ray's error around it.
    """
    blocks = dataset(todo, folder, encoder, pools).iter_batches(
        batch_size=None, batch_format="pyarrow"
    )
    try:
        for block in blocks:
            yield from block.to_pylist()
    except Exception:
        raise_failure(folder)
        raise


class Rates:
    """What was done since the start, for each second."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.tracks = self.errors = self.tokens = 0
        self.audio_s = 0.0

    def add(self, part: dict[str, Any]) -> None:
        self.tracks += part["tracks"]
        self.errors += part["errors"]
        self.tokens += part["tokens"] or 0
        self.audio_s += part["audio_s"] or 0.0

    def facts(self, seconds: float | None = None) -> dict[str, float]:
        """Of so many seconds, or those since the start. Tokens and hours of sound only where the
        encoder counts them."""
        seconds = seconds or max(time.monotonic() - self.started, 1e-9)
        facts = {"tracks_per_second": round(self.tracks / seconds, 2)}
        if self.audio_s:
            facts["audio_hours_per_second"] = float(f"{self.audio_s / 3600 / seconds:.4g}")
        if self.tokens:
            facts["tokens_per_second"] = round(self.tokens / seconds, 1)
        return facts


def shown(
    parts: Iterable[dict[str, Any]], step: str, total: int, rates: Rates
) -> Iterator[dict[str, Any]]:
    """Yields `parts`, adding them to `rates`: a bar on a terminal, log lines elsewhere."""
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(
            *columns, TextColumn("{task.fields[said]}"), TimeElapsedColumn(),
            console=Console(stderr=True),
        ) as bar:  # fmt: skip
            task = bar.add_task(step, total=total, said="")
            for part in parts:
                yield part
                rates.add(part)
                said = [
                    f"{value:g} {name.replace('_', ' ')}" for name, value in rates.facts().items()
                ]
                said.append(f"{rates.errors} errors")
                bar.update(task, completed=rates.tracks, said=", ".join(said))
        return
    logged = time.monotonic()
    for part in parts:
        yield part
        rates.add(part)
        now = time.monotonic()
        if now - logged >= LOG_EVERY_S or rates.tracks >= total:
            log.info(step, done=rates.tracks, total=total, errors=rates.errors, **rates.facts())
            logged = now

"""The whole embedding pipeline on Ray against a bare loop over its model stage.

`benchmarks/encoders_pipeline.py` runs it. Both stages write down when they begin and end each
chunk, so that a pipeline that falls behind says where.
"""

import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.errors import InputError
from feature_repo.schema import TRACK_ID
from ray_jobs.embed_folder import TODO_FILE
from ray_jobs.embed_run import Pools, flight_bytes, written_parts
from ray_jobs.encoders.failing_rows import Outcomes
from ray_jobs.encoders.pipeline import CHUNK, Encoder, EncoderActor, Preparer, read_chunk, started
from ray_jobs.ray_session import ray_session

BARE_CHUNKS = 16
PREPARED, ENCODED = "prepared", "encoded"


@dataclass(frozen=True)
class Stamped:
    """An encoder of two stages that writes down when each began and ended a chunk."""

    encoder: Any
    folder: Path

    @property
    def columns(self) -> tuple[str, ...]:
        return self.encoder.columns

    @property
    def dim(self) -> int:
        return self.encoder.dim

    @property
    def encoder_id(self) -> str:
        return self.encoder.encoder_id

    @property
    def settings(self) -> dict[str, object]:
        return self.encoder.settings

    def prepare(self, tracks: pa.Table) -> pa.Table:
        began = time.perf_counter()
        prepared = self.encoder.prepare(tracks)
        self._write(PREPARED, tracks, began)
        return prepared

    def encode(self, prepared: pa.Table) -> Outcomes:
        return self.begin(prepared)()

    def begin(self, prepared: pa.Table) -> Callable[[], Outcomes]:
        began = time.perf_counter()
        finish = started(self.encoder, prepared)

        def finished() -> Outcomes:
            outcomes = finish()
            self._write(ENCODED, prepared, began)
            return outcomes

        return finished

    def _write(self, stage: str, rows: pa.Table, began: float) -> None:
        # The clock is that of the machine, the same for all its processes.
        with (self.folder / f"{stage}.txt").open("a") as log:
            log.write(f"{rows[TRACK_ID][0]} {rows.num_rows} {began} {time.perf_counter()}\n")

    def stamps(self, stage: str) -> np.ndarray:
        """(chunks, 4): a chunk's first track, its tracks, when it began, when it ended."""
        return np.loadtxt(self.folder / f"{stage}.txt", ndmin=2)


def pipeline_rate(
    encoder: Encoder,
    tracks: pa.Table,
    *,
    chunk: int,
    decoders: int = 1,
    gpu: bool = False,
) -> dict[str, float]:
    """Tracks a second of the pipeline with one actor and of the bare loop, their ratio, `waits`.

    The bare loop is `encode` over chunks that are prepared already, in this process, and its first
    chunk is not counted. Of the pipeline it is `settled_rate`: Ray's start and the loading of the
    model, which a long job does once, are not in it. `tracks`: at least three chunks with the
    columns of the encoder, which has two stages; prepared faster than encoded, or it is `prepare`
    that is measured.
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
        stamped = Stamped(encoder, folder)
        with ray_session(flight_bytes(encoder, sizes, chunk)):
            done = sum(
                part["tracks"] for part in written_parts(folder / TODO_FILE, folder, stamped, sizes)
            )
            ended = time.perf_counter()
        # On both sides of it: other processes may have come or gone.
        after = _bare_seconds(bare_loop, folder / TODO_FILE, min(chunks, BARE_CHUNKS), gpu=gpu)
        prepared, encoded = stamped.stamps(PREPARED), stamped.stamps(ENCODED)
    if done != tracks.num_rows or encoded[:, 1].sum() != done:
        raise RuntimeError(
            f"{tracks.num_rows} tracks: {encoded[:, 1].sum():g} encoded, {done} done"
        )
    piped, bare = settled_rate(encoded, ended), 2 / (before + after)
    told = waits(prepared, encoded, decoders)
    return {"pipeline": piped, "bare": bare, "ratio": piped / bare} | told


def settled_rate(encoded: np.ndarray, ended: float) -> float:
    """Tracks a second from where `settled` begins to when the last part was in the driver's hands.

    Parts come to the driver in bursts, so when they came tells nothing of the rate: of many that
    came at once most were encoded before.
    """
    since, later = settled(encoded)
    return float(later[:, 1].sum() / (ended - since))


def settled(encoded: np.ndarray) -> tuple[float, np.ndarray]:
    """When the model stage had ended the first quarter of its chunks, which may have been prepared
    while it loaded its model; and the chunks that ended later."""
    encoded = encoded[np.argsort(encoded[:, 3])]
    first = max(1, len(encoded) // 4)
    return encoded[first - 1, 3], encoded[first:]


def waits(prepared: np.ndarray, encoded: np.ndarray, decoders: int) -> dict[str, float]:
    """Of the stamps, where `settled`: the share of the time in which the model stage had no chunk
    (`idle`) and in which the decoders were at work (`decoding`), and for how long a chunk lay ready
    before the model took it (`lay_ready_s`, the median). A model stage that is idle while chunks
    lie ready waits for Ray; one for which none do waits for the decoders.
    """
    since, later = settled(encoded)
    until = later[-1, 3]
    later = later[np.argsort(later[:, 2])]
    busy_until = np.maximum.accumulate([since, *later[:-1, 3]])
    idle = np.maximum(later[:, 2] - busy_until, 0).sum()
    decoding = np.minimum(prepared[:, 3], until) - np.maximum(prepared[:, 2], since)
    ready = dict(prepared[:, [0, 3]].tolist())
    lay = [began - ready[track] for track, began in later[:, [0, 2]].tolist()]
    return {
        "idle": float(idle / (until - since)),
        "decoding": float(np.maximum(decoding, 0).sum() / (until - since) / decoders),
        "lay_ready_s": float(np.median(lay)),
    }


def _bare_seconds(encoder: Encoder, todo: Path, chunks: int, *, gpu: bool) -> float:
    """Of `encode` for each track of all chunks but the first."""
    encode, prepare = EncoderActor(encoder, gpu=gpu), Preparer(encoder)
    spent, tracks = 0.0, 0
    for number in range(chunks):
        rows = prepare(read_chunk(todo, pa.table({CHUNK: [number]})))
        started = time.perf_counter()
        encode(rows)
        if number:
            spent += time.perf_counter() - started
            tracks += rows.num_rows
    return spent / tracks

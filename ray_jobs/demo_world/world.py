"""The demo world: real tunes rendered to audio, simulated listeners, and the truth about both.

`generate(folder, DemoWorldOptions())` writes

    audio/<track_id>.flac     22050 Hz mono 16 bit, about 12 s each
    tracks.parquet            the catalogue, in the data contract's columns
    events.parquet            the listening log, in the data contract's columns
    truth/tracks.parquet      what each track really is (timbre, pace, register, ... appeal)
    truth/listeners.parquet   the interests of each listener
    truth/events.parquet      the true probability that each play is completed
    world.json                options, counts, licences, AUC of the truth: written last

Same options, same folder: same tables and audio bytes. Needs `pip install 'crescendo[demo]'`.
Tunes are rendered in spawned processes: a script that calls `generate` keeps the call under
`if __name__ == "__main__":`.
"""

import json
import math
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.artifacts import write_json
from feature_repo.errors import InputError
from feature_repo.scratch import scratch_folder
from ray_jobs import progress
from ray_jobs.demo_world.catalogue import tracks_table, truth_table
from ray_jobs.demo_world.corpus import COLLECTIONS
from ray_jobs.demo_world.listening import ListeningLog, simulate
from ray_jobs.demo_world.render import Rendered, RenderTask, render_tunes, require_pretty_midi
from ray_jobs.demo_world.tunes import Tune, choose_tunes

WORLD = "world.json"
FORMAT = 1
"""Raised when the same options give another world than before."""
TUNES_A_TASK = 8
FEWEST_TUNES_FOR_WORKERS = 48
"""Below this, starting worker processes takes longer than they save."""


@dataclass(frozen=True, kw_only=True)
class DemoWorldOptions:
    """How big the world is. `scale` multiplies all three (tunes as far as the corpus has them)."""

    tunes: int = 600
    listeners: int = 500
    events: int = 60_000
    scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tunes", "listeners", "events"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name} is {value!r}; wanted a whole number of at least 1")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise InputError(f"seed is {self.seed!r}; wanted a whole number of at least 0")
        if not isinstance(self.scale, int | float) or not 0 < self.scale < math.inf:
            raise InputError(f"scale is {self.scale!r}; wanted a number above 0")
        if self.scaled_events < self.scaled_listeners:
            raise InputError(
                f"events is {self.scaled_events} for {self.scaled_listeners} listeners; wanted at "
                "least one event a listener"
            )

    @property
    def scaled_tunes(self) -> int:
        return max(1, round(self.tunes * self.scale))

    @property
    def scaled_listeners(self) -> int:
        return max(1, round(self.listeners * self.scale))

    @property
    def scaled_events(self) -> int:
        return max(1, round(self.events * self.scale))


class DemoWorld(TypedDict):
    """What `generate` made: where, how much, and the AUC that the true probability reaches."""

    folder: str
    tracks: int
    listeners: int
    events: int
    collections: dict[str, int]
    truth_auc: float | None
    seconds: float


def generate(folder: Path, options: DemoWorldOptions) -> DemoWorld:
    """Makes the world in `folder`, unless it is there already with the same options.

    Everything is written to a folder beside it that is renamed at the end; a world of other
    options is replaced, anything else in `folder` is left alone and refused.
    """
    folder = folder.resolve()
    existing = _existing_world(folder, options)
    if existing is not None:
        return existing
    require_pretty_midi()
    started = time.monotonic()
    with scratch_folder(folder.parent, f".{folder.name}.") as partial:
        rendered = _render(choose_tunes(options.seed), partial / "audio", options)
        truth = truth_table(rendered, seed=options.seed)
        with progress.step("simulate listeners", listeners=options.scaled_listeners):
            log = simulate(
                truth,
                listeners=options.scaled_listeners,
                events=options.scaled_events,
                seed=options.seed,
            )
        (partial / "truth").mkdir()
        _write(partial / "tracks.parquet", tracks_table(rendered, truth, folder / "audio"))
        _write(partial / "events.parquet", log.events)
        _write(partial / "truth" / "tracks.parquet", truth)
        _write(partial / "truth" / "listeners.parquet", log.listeners)
        _write(partial / "truth" / "events.parquet", log.true_probabilities)
        collections = Counter(track.tune.collection.name for track in rendered)
        world = DemoWorld(
            folder=str(folder),
            tracks=len(rendered),
            listeners=options.scaled_listeners,
            events=log.events.num_rows,
            collections=dict(collections.most_common()),
            truth_auc=truth_auc(log),
            seconds=round(time.monotonic() - started, 1),
        )
        licences = {collection.name: collection.licence for collection in COLLECTIONS}
        record = {
            "format": FORMAT,
            "options": asdict(options),
            "world": world,
            "licences": {name: licences[name] for name in world["collections"]},
        }
        write_json(partial / WORLD, record)
        _move_into_place(partial, folder)
    return world


def truth_auc(log: ListeningLog) -> float | None:
    """AUC of the true probability for complete or favourite against skip: the ceiling.

    None for a log so small that every play ended the same way.
    """
    from sklearn.metrics import roc_auc_score

    action = log.events["action"].to_numpy()
    judged = action != "play"
    probability = log.true_probabilities["true_probability"].to_numpy()
    labels = action[judged] != "skip"
    if labels.all() or not labels.any():
        return None
    return float(roc_auc_score(labels, probability[judged]))


def _existing_world(folder: Path, options: DemoWorldOptions) -> DemoWorld | None:
    """The world that `folder` holds, if it is the one asked for and was made there."""
    if not folder.exists():
        return None
    path = folder / WORLD
    if not path.is_file():
        if folder.is_dir() and not any(folder.iterdir()):
            return None
        raise InputError(f"{folder} exists and is no demo world; give a new or an empty folder")
    record = json.loads(path.read_text())
    # The tables hold absolute audio paths: a world that was moved is made anew.
    wanted = (FORMAT, asdict(options), str(folder))
    world: DemoWorld = record["world"]
    return world if (record["format"], record["options"], world["folder"]) == wanted else None


def _render(tunes: list[Tune], audio: Path, options: DemoWorldOptions) -> list[Rendered]:
    """Renders tunes from the front of the list until enough were usable."""
    if options.tunes > len(tunes):
        raise InputError(
            f"tunes is {options.tunes}; the free collections hold {len(tunes)}: ask for fewer"
        )
    wanted = min(options.scaled_tunes, len(tunes))
    audio.mkdir()
    waiting = iter(enumerate(tunes, start=1))
    rendered: list[Rendered] = []
    while len(rendered) < wanted:
        tasks = [
            RenderTask(track_id, tune, audio, options.seed)
            for track_id, tune in islice(waiting, wanted - len(rendered))
        ]
        if not tasks:
            break
        done = progress.track(_rendered(tasks), "render tunes", len(tasks), "tunes")
        rendered.extend(track for track in done if track is not None)
    return sorted(rendered, key=lambda track: track.track_id)


def _rendered(tasks: list[RenderTask]) -> Iterator[Rendered | None]:
    """Renders tasks, in worker processes when there are many."""
    # Movements first: a batch of excerpts shares a parsed score, and long batches start early.
    tasks = sorted(tasks, key=lambda task: (task.tune.path is None, task.tune.tune_key))
    if len(tasks) < FEWEST_TUNES_FOR_WORKERS:
        yield from render_tunes(tasks)
        return
    batches = _batches(tasks)
    workers = min(os.cpu_count() or 1, len(batches))
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        for batch in pool.map(render_tunes, batches):
            yield from batch
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(tasks: list[RenderTask]) -> list[list[RenderTask]]:
    """Tasks of one movement together, the others in even batches."""
    batches: list[list[RenderTask]] = []
    for task in tasks:
        last = batches[-1] if batches else None
        joins = last is not None and last[-1].tune.path == task.tune.path
        if last is not None and joins and (task.tune.path is not None or len(last) < TUNES_A_TASK):
            last.append(task)
        else:
            batches.append([task])
    return batches


def _write(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path, compression="zstd")


def _move_into_place(partial: Path, folder: Path) -> None:
    """Renames `partial` to `folder`; a world that is there already goes first."""
    if folder.exists():
        with scratch_folder(folder.parent, f".{folder.name}-before.") as before:
            os.rename(folder, before / folder.name)
            os.rename(partial, folder)
    else:
        os.rename(partial, folder)

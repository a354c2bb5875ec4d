"""The event log of `user_sequence`, built at several sizes: is time linear and memory flat?

    python benchmarks/event_log.py [--quick] [--events-m 2.5 5 10 20]

Writes listening logs (millions of events, a hundred a user, in the order of time, one in fifty
late, one in two hundred a repeat) and runs `crescendo sequences` on each, which builds those of ten
million events and more by Ray Data. Seconds, CPU seconds and the peak of memory are those of the
command with every process under it; memory is proportional (PSS): what processes share is counted
once. Seconds and peak until the log alone stands, before the counts, come first. The last line is
one JSON object.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import processor, versions
from feature_repo import schema
from feature_repo.workspace import Workspace
from ray_jobs.sequence_log import RAY_FROM_EVENTS

SIZES_M, QUICK_SIZES_M = (2.5, 5.0, 10.0, 20.0), (0.5, 1.0)
EVENTS_A_USER, TRACKS, FILE_EVENTS = 100, 100_000, 1_000_000
START_US, SPAN_US = 1_700_000_000_000_000, 180 * 86_400 * 10**6
SAMPLE_S = 0.2


def write_events(folder: Path, events: int) -> None:
    """The log in files of FILE_EVENTS, each of its own span of time."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    files = -(-events // FILE_EVENTS)
    for number in range(files):
        first = number * FILE_EVENTS
        rows = min(FILE_EVENTS, events - first)
        moments = np.sort(random.integers(0, SPAN_US // files, rows))
        happened = START_US + number * (SPAN_US // files) + moments
        late = random.integers(1, 86_400 * 10**6, rows) * (random.random(rows) < 0.02)
        ids = np.arange(first, first + rows)
        repeat = np.flatnonzero(random.random(rows) < 0.005)
        users = random.integers(0, max(1, events // EVENTS_A_USER), rows)
        tracks = (TRACKS * random.power(0.5, rows)).astype(np.int64)
        for column in (ids, users, tracks, happened):  # a repeat says what the event before it said
            column[repeat] = column[repeat - 1]
        actions = np.array(schema.ACTIONS)[random.integers(0, len(schema.ACTIONS), rows)]
        columns = [
            *(ids, users, tracks, happened, actions, random.random(rows)),
            *(ids // 10, happened + late),
        ]
        arrays = [pa.array(a, type=f.type) for a, f in zip(columns, schema.EVENTS, strict=True)]
        table = pa.table(arrays, schema=schema.EVENTS)
        pq.write_table(table, folder / f"part-{number:04d}.parquet", row_group_size=131_072)


def build(workspace: Workspace) -> dict[str, Any]:
    """What `crescendo sequences` took, and what it answered."""
    program = "import sys; from ray_jobs.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "--workspace", str(workspace.root), "sequences"]
    log = workspace.feature_source(schema.USER_SEQUENCE)
    begin = time.perf_counter()
    cpu_s: dict[tuple[int, float], float] = {}
    peak_gb, log_built = 0.0, {}
    with tempfile.TemporaryFile("w+") as answer, tempfile.TemporaryFile("w+") as errors:
        process = psutil.Popen(command, stdout=answer, stderr=errors)
        while process.poll() is None:
            peak_gb = max(peak_gb, sample(process, cpu_s))
            if not log_built and log.exists():
                log_built = {"log_s": time.perf_counter() - begin, "log_peak_gb": peak_gb}
            time.sleep(SAMPLE_S)
        seconds = time.perf_counter() - begin
        answer.seek(0)
        errors.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{errors.read()[-4000:]}")
        rows = json.loads(answer.read())["rows"]
    measured = {
        **log_built,
        "seconds": seconds,
        "cpu_s": sum(cpu_s.values()),
        "peak_gb": peak_gb,
    }
    return {name: round(value, 2) for name, value in measured.items()} | {"rows": rows}


def sample(process: psutil.Process, cpu_s: dict[tuple[int, float], float]) -> float:
    """Memory (PSS, GB) of the process and all under it; CPU seconds so far go into `cpu_s`."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            times = one.cpu_times()
            cpu_s[one.pid, one.create_time()] = times.user + times.system
            total += one.memory_full_info().pss
        except psutil.Error:  # it has ended since
            continue
    return total / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="half a million and a million")
    parser.add_argument("--events-m", type=float, nargs="+", help="sizes, in millions of events")
    options = parser.parse_args()
    sizes = options.events_m or (QUICK_SIZES_M if options.quick else SIZES_M)
    table = Table(title="crescendo sequences")
    for heading in ("events", "by", "log, s", "log, GB", "all, s", "CPU s a million", "all, GB"):
        table.add_column(heading, justify="right")
    found = []
    for size in sizes:
        events = int(size * 1e6)
        with tempfile.TemporaryDirectory(prefix="event-log-") as name:
            workspace = Workspace(Path(name))
            write_events(workspace.events, events)
            built = build(workspace)
        by = "Ray Data" if events >= RAY_FROM_EVENTS else "one process"
        found.append({"events": events, "by": by, **built})
        cells = (built["log_s"], built["log_peak_gb"], built["seconds"], built["cpu_s"] / size)
        table.add_row(
            f"{size:g} M", by, *(f"{cell:.2f}" for cell in cells), f"{built['peak_gb']:.2f}"
        )
    Console(width=100).print(table)
    print(f"{processor()}; {versions('ray', 'pyarrow', 'duckdb')}")
    print(json.dumps({"sizes": found}))


if __name__ == "__main__":
    main()

"""Point-in-time joins of training sets: our offline store and stock Feast's DuckDB store.

    python benchmarks/offline_joins.py [--quick] [--length 100] [--memory-gb 16]

Two questions over random listening logs, one event in fifty late:

    scalars     10 numbers a user, newest row before each impression
    sequences   the same, and the last `--length` listens: four lists of that length

Ours builds the lists from the event log; stock needs a snapshot after every event as its source,
which is written first and not timed. Each run is a process of its own: seconds from the question to
the Arrow table (CPU seconds too, in the JSON), and its peak memory, libraries included. Sizes grow
until stock dies, of memory (--memory-gb) or of time (--seconds); what it last survived is compared,
row by row. At last ours writes the largest size to a parquet file, which needs no room for the
whole. The last line is JSON.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import processor, versions
from benchmarks.offline_join_data import NUMBERS, SCALARS, SNAPSHOTS, STORES, write_data
from feature_repo import schema

SIZES = ((20_000, 100_000), (100_000, 500_000), (200_000, 1_000_000), (1_000_000, 5_000_000))
"""Impressions, events (and rows of the ten numbers)."""
QUICK_SIZES = ((20_000, 100_000),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, lists of 20")
    parser.add_argument("--length", type=int, help="listens of a sequence; 100, quick 20")
    parser.add_argument("--memory-gb", type=float, default=16.0, help="stock dies above this")
    parser.add_argument("--seconds", type=float, default=300.0, help="stock dies after this")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)  # what a child process does
    options = parser.parse_args()
    if options.run:
        folder, store, question, how = options.run
        print(json.dumps(run(Path(folder), store, question, how)))
        return
    length = options.length or (20 if options.quick else 100)
    sizes = QUICK_SIZES if options.quick else SIZES
    machine = f"{processor()}; {versions('feast', 'duckdb', 'pyarrow', 'numpy')}"
    results: dict[str, Any] = {"length": length, "machine": machine}
    with tempfile.TemporaryDirectory(prefix="offline-joins-") as temporary:
        folders = [Path(temporary) / f"{events}" for _, events in sizes]
        for question in ("scalars", "sequences"):
            results[question] = compare(question, sizes, folders, length, options)
        write_data(folders[-1], *sizes[-1], length, snapshots=False)
        whole = child(folders[-1], "ours", "sequences", "file", options)
        results["largest"] = {"impressions": sizes[-1][0], "events": sizes[-1][1], **(whole or {})}
    compared = [row for q in ("scalars", "sequences") for row in results[q] if "ratio" in row]
    results["identical"] = bool(compared) and all(row["identical"] for row in compared)
    show(results)
    print(json.dumps(results))


def compare(
    question: str, sizes: Any, folders: list[Path], length: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row a size, up to the first that stock does not survive."""
    rows = []
    for (impressions, events), folder in zip(sizes, folders, strict=True):
        write_data(folder, impressions, events, length, snapshots=question == "sequences")
        row: dict[str, Any] = {"impressions": impressions, "events": events}
        runs = {store: child(folder, store, question, "table", options) for store in STORES}
        for store, found in runs.items():
            row |= {f"{store}_{name}": value for name, value in (found or {"died": True}).items()}
        digests = [row.pop(f"{store}_digest", None) for store in STORES]
        ours, stock = runs["ours"], runs["stock"]
        if ours and stock:
            row["ratio"] = round(stock["seconds"] / ours["seconds"], 1)
            row["identical"] = digests[0] == digests[1]
        rows.append(row)
        if stock is None:
            break
    return rows


def child(
    folder: Path, store: str, question: str, how: str, options: argparse.Namespace
) -> dict[str, Any] | None:
    """What a run in a process of its own answered; None if it was ended for memory or time."""
    command = [sys.executable, __file__, "--run", str(folder), store, question, how]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + options.seconds
        while process.poll() is None:
            if resident_gb(process.pid) > options.memory_gb or time.monotonic() > deadline:
                process.kill()
                process.wait()
                return None
            time.sleep(0.05)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        output.seek(0)
        return json.loads(output.read().strip().splitlines()[-1])


def resident_gb(process_id: int) -> float:
    try:
        pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    except (FileNotFoundError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def run(folder: Path, store_name: str, question: str, how: str) -> dict[str, Any]:
    """In the child: joins, and says how long it took, the peak memory, and what came out."""
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(folder), fs_yaml_file=folder / f"{store_name}.yaml")
    views = [user_numbers(folder), user_lists(folder, store_name)]
    store.apply([entity(), *views])
    features = [f"{NUMBERS}:{name}" for name in SCALARS]
    if question == "sequences":
        features += [f"{views[1].name}:{name}" for name in schema.SEQUENCE_COLUMNS]
    rows = pq.read_table(folder / "impressions.parquet").to_pandas()
    started, cpu_started = time.perf_counter(), time.process_time()
    job = store.get_historical_features(rows, features)
    if how == "file":
        count = job.write_parquet(str(folder / "set.parquet"))
        measured = spent(started, cpu_started)
        size = (folder / "set.parquet").stat().st_size
        return measured | {"rows": count, "bytes": size}
    table = job.to_arrow()
    measured = spent(started, cpu_started)
    return measured | {"digest": digest(table, [*SCALARS, *schema.SEQUENCE_COLUMNS])}


def digest(table: pa.Table, names: list[str]) -> str:
    """Of the values, whatever order the rows come in and however the lists are stored."""
    order = np.argsort(table["impression"].to_numpy(), kind="stable")
    found = hashlib.sha256(str(table.num_rows).encode())
    for name in (name for name in names if name in table.column_names):
        for start in range(0, len(order), 20_000):
            part = table[name].take(pa.array(order[start : start + 20_000])).combine_chunks()
            found.update(np.asarray(part.is_null()).tobytes())
            if pa.types.is_list(part.type):
                lengths = part.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
                found.update(lengths.astype(np.int64).tobytes())
                part = part.flatten()
            values = part.fill_null(0).to_numpy(zero_copy_only=False)
            found.update(values.astype(np.int64).tobytes())
    return found.hexdigest()


def spent(started: float, cpu_started: float) -> dict[str, float]:
    """Since those two clocks; the peak is the whole process's, libraries included."""
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_s": round(time.process_time() - cpu_started, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
    }


def entity() -> Any:
    from feature_repo.feature_definitions import user

    return user


def user_numbers(folder: Path) -> Any:
    from feast import FeatureView, Field, FileSource
    from feast.data_format import ParquetFormat
    from feast.types import Int64

    source = FileSource(
        name=f"{NUMBERS}_source",
        path=f"{folder}/{NUMBERS}/*.parquet",
        file_format=ParquetFormat(),
        timestamp_field=schema.EVENT_TIMESTAMP,
    )
    fields = [Field(name=name, dtype=Int64) for name in (schema.USER_ID, *SCALARS)]
    return FeatureView(name=NUMBERS, entities=[entity()], schema=fields, source=source)


def user_lists(folder: Path, store_name: str) -> Any:
    """The platform's own view over the event log, or a plain one over snapshots for stock."""
    from feast import FeatureView, FileSource
    from feast.data_format import ParquetFormat

    from feature_repo.feature_definitions import user_sequence_view

    length = int((folder / "length").read_text())
    ours = user_sequence_view(folder, length)
    if store_name == "ours":
        return ours
    source = FileSource(
        name=f"{SNAPSHOTS}_source",
        path=f"{folder}/{SNAPSHOTS}/*.parquet",
        file_format=ParquetFormat(),
        timestamp_field=schema.EVENT_TIMESTAMP,
    )
    return FeatureView(name=SNAPSHOTS, entities=[entity()], schema=ours.schema, source=source)


def show(results: dict[str, Any]) -> None:
    table = Table(title=f"point-in-time joins, lists of {results['length']}")
    for name in ("question", "impressions", "rows", "ours", "stock", "ratio", "same rows"):
        table.add_column(name, justify="right")
    for question in ("scalars", "sequences"):
        for row in results[question]:
            cells = [
                "died"
                if row.get(f"{store}_died")
                else f"{row[f'{store}_seconds']} s, {row[f'{store}_peak_gb']} GB"
                for store in STORES
            ]
            table.add_row(
                question,
                f"{row['impressions']:,}",
                f"{row['events']:,}",
                *cells,
                f"{row['ratio']}x" if "ratio" in row else "",
                str(row.get("identical", "")),
            )
    whole = results["largest"]
    table.add_row(
        "to a file",
        f"{whole['impressions']:,}",
        f"{whole['events']:,}",
        f"{whole.get('seconds')} s, {whole.get('peak_gb')} GB",
        "",
        "",
        "",
    )
    console = Console()
    console.print(table)
    console.print(results["machine"])


if __name__ == "__main__":
    main()

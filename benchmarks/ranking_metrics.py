"""How long AUC and GAUC take, and how much memory, beside scikit-learn's AUC.

    python benchmarks/ranking_metrics.py [--rows 100000000] [--users 1000000] [--quick]

Random float32 scores with a weak signal, int64 user ids. Ours are exact: `error` is the difference
to scikit-learn's AUC on the first `--sklearn-rows`, where its argsort still takes bearable time.
Memory is what computing added to the peak of a process that holds the columns; each measure runs in
a process of its own. The last line is one JSON object; seconds are CPU seconds, `wall_s` beside.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import processor, versions

SCORE_BLOCK = 4_194_304


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--sklearn-rows", type=int, default=10_000_000)
    parser.add_argument("--quick", action="store_true", help="1,000,000 rows")
    options = parser.parse_args()
    rows = 1_000_000 if options.quick else options.rows
    few = min(rows, options.sklearn_rows)

    measured = {
        "auc": alone("auc", rows, options.users),
        "gauc": alone("gauc", rows, options.users),
        "logloss": alone("logloss", rows, options.users),
        "calibration": alone("calibration", rows, options.users),
        "auc_few": alone("auc", few, options.users),
        "sklearn_few": alone("sklearn", few, options.users),
    }
    print(f"{rows:,} rows, {options.users:,} users; the last two: {few:,} rows")
    for name, one in measured.items():
        print(
            f"  {name:<12} {one['seconds']:7.1f} CPU s {one['wall_s']:7.1f} s wall "
            f"{one['added_mb']:7,} MB more than the {one['data_mb']:,} MB of columns"
        )
    ours, theirs = measured["auc_few"], measured["sklearn_few"]
    result = {
        "rows": rows,
        "users": options.users,
        "sklearn_rows": few,
        "sklearn_ratio": round(theirs["seconds"] / ours["seconds"], 1),
        "error": abs(ours["value"] - theirs["value"]),
        "processor": processor(),
        "versions": versions("numpy", "scikit-learn"),
        **measured,
    }
    print(json.dumps(result))


def alone(measure: str, rows: int, users: int) -> dict[str, float]:
    """One measure in a process of its own, whose peak of memory is nobody else's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(run, (measure, rows, users))


def run(measure: str, rows: int, users: int) -> dict[str, float]:
    from models.ranking_metrics import auc, calibration, expected_calibration_error, gauc, logloss

    users_N, labels_N, scores_N = columns(rows, users)
    if measure == "sklearn":
        from sklearn.metrics import roc_auc_score
    compute: dict[str, Callable[[], float]] = {
        "auc": lambda: auc(labels_N, scores_N),
        "gauc": lambda: gauc(users_N, labels_N, scores_N).gauc,
        "logloss": lambda: logloss(labels_N, scores_N),
        "calibration": lambda: expected_calibration_error(calibration(labels_N, scores_N)),
        "sklearn": lambda: roc_auc_score(labels_N, scores_N),
    }
    before = peak_mb()
    cpu, wall = time.process_time(), time.perf_counter()
    value = compute[measure]()
    return {
        "seconds": round(time.process_time() - cpu, 2),
        "wall_s": round(time.perf_counter() - wall, 2),
        "value": float(value),
        "data_mb": round((users_N.nbytes + labels_N.nbytes + scores_N.nbytes) / 1e6),
        "added_mb": round(peak_mb() - before),
    }


def columns(rows: int, users: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User ids, 0/1 labels, and scores that know a little of them; made in blocks."""
    random = np.random.default_rng(0)
    users_N = np.empty(rows, np.int64)
    labels_N, scores_N = np.empty(rows, np.int8), np.empty(rows, np.float32)
    for start in range(0, rows, SCORE_BLOCK):
        block = slice(start, min(start + SCORE_BLOCK, rows))
        count = block.stop - start
        users_N[block] = random.integers(0, users, count)
        labels_N[block] = random.random(count, dtype=np.float32) < 0.3
        noise = random.random(count, dtype=np.float32)
        scores_N[block] = (noise + 0.2 * labels_N[block]) / np.float32(1.2)
    return users_N, labels_N, scores_N


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()

"""Recall and speed of approximate nearest tracks against exact search, and the cost of candidates.

    OMP_NUM_THREADS=1 python benchmarks/retrieval.py [--quick] [--tracks N] [--dims D]

Recall@K of the indexes of `serving.retrieval.vector_index`, each in the settings that it is served
with: the share of a query's K exact nearest tracks that are among its K found ones, over queries
that are means of tracks of a few groups, as histories are. Times are CPU time of one core: of a
build, per query, and of the 500 candidates of a whole `Retriever.candidates`. `index_mb`: what
the index itself holds, vectors included.
Prints a line a measurement; the last line is one JSON object.

Shape suffixes: N tracks, D dims, Q queries, K neighbours.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import processor, versions
from models.batch import ItemTable
from serving.retrieval import vector_index
from serving.retrieval.options import RetrievalOptions
from serving.retrieval.retriever import Retriever
from serving.retrieval.track_facts import TrackFacts
from serving.retrieval.vector_index import VectorIndex

KINDS = ("flat", "ivf", "hnsw")
NEIGHBOURS = (10, 100, 500)
HISTORY = 20
TASTES = 3
"""Groups of tracks that one user's listens come from."""


def clustered(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (N, D) in groups of unequal sizes, and the group of each.

    A group is about as wide as the groups are apart: harder than embeddings, whose neighbourhoods
    have fewer dims.
    """
    random = np.random.default_rng(seed)
    groups = int(np.sqrt(n))
    shares = random.pareto(1.5, groups) + 0.1
    group_N = random.choice(groups, n, p=shares / shares.sum())
    centres = random.standard_normal((groups, d), dtype=np.float32)
    x_ND = centres[group_N]
    x_ND += random.standard_normal((n, d), dtype=np.float32)
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    return x_ND, group_N


def histories(group_N: np.ndarray, queries: int, seed: int = 1) -> np.ndarray:
    """Rows (Q, HISTORY): listens to tracks of TASTES groups each."""
    random = np.random.default_rng(seed)
    order_N = np.argsort(group_N, kind="stable")
    starts = np.searchsorted(group_N[order_N], np.arange(group_N.max() + 2))
    rows = []
    for _ in range(queries):
        taste = group_N[random.integers(0, len(group_N), TASTES)]
        own = random.choice(taste, HISTORY)
        rows.append(order_N[random.integers(starts[own], starts[own + 1])])
    return np.stack(rows)


def measure(x_ND: np.ndarray, query_QD: np.ndarray, kind: str, exact_QK: np.ndarray) -> Any:
    """One kind's build, recall and time a query, on one thread."""
    faiss = vector_index.import_faiss()
    faiss.omp_set_num_threads(1)
    begin = time.process_time()
    index = vector_index.make_index(faiss, x_ND, kind)
    row: dict[str, Any] = {"kind": kind, "build_s": time.process_time() - begin}
    row["index_mb"] = len(faiss.serialize_index(index)) / 1e6
    for k in NEIGHBOURS:
        index.search(query_QD[:5], k)
        begin = time.process_time()
        # One at a time, as requests come: a batch would share the reading of vectors.
        found_QK = np.concatenate([index.search(query_D[None], k)[1] for query_D in query_QD])
        seconds = time.process_time() - begin
        hits = sum(np.isin(f, e[:k]).sum() for f, e in zip(found_QK, exact_QK, strict=True))
        row |= {
            f"recall@{k}": float(hits / exact_QK[:, :k].size),
            f"cpu_ms@{k}": 1e3 * seconds / len(query_QD),
            f"queries_per_s@{k}": len(query_QD) / seconds,
        }
    return row


def candidates(x_ND: np.ndarray, group_N: np.ndarray, history_QH: np.ndarray) -> dict[str, Any]:
    """CPU time of 500 candidates from all four sources, and of the index and arrays behind them."""
    random = np.random.default_rng(2)
    n, codes = len(x_ND), 128
    # IDs of two families and three levels, of which the tracks of a group share two.
    code_N3 = np.stack([group_N % codes, group_N // codes, random.integers(0, codes, n)], 1)
    items = ItemTable(track_ids_I=np.arange(n), codes_IFL=np.stack([code_N3, code_N3], 1))
    facts = TrackFacts.of(
        listed_I=np.ones(n, dtype=bool),
        artist_I=random.integers(0, n // 10, n).astype(np.int32),
        released_us_I=random.integers(0, 1 << 50, n),
        counts=[random.geometric(0.1, n)],
        now_us=1 << 50,
    )
    begin = time.process_time()
    vectors = VectorIndex.build(items.track_ids_I, x_ND)
    retriever = Retriever(items, 0, facts, vectors)
    build_s = time.process_time() - begin
    options = RetrievalOptions()
    for history_H in history_QH[:5]:
        retriever.candidates(history_H, options)
    times = []
    for history_H in history_QH:
        begin = time.thread_time()
        found = retriever.candidates(history_H, options)
        times.append(1e3 * (time.thread_time() - begin))
        assert len(found.track_ids_C) == options.total
    begin = time.thread_time()
    for _ in history_QH:
        retriever.diversify(found.track_ids_C, 20, max_per_artist=2, max_per_prefix=2)
    return {
        "kind": vectors.kind,
        "build_s": build_s,
        "candidates_p50_ms": float(np.median(times)),
        "candidates_p99_ms": float(np.quantile(times, 0.99)),
        "diversify_ms": 1e3 * (time.thread_time() - begin) / len(history_QH),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small catalogue, within a minute")
    parser.add_argument("--tracks", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--dims", type=int, default=128)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--queries", type=int, default=200)
    given = parser.parse_args()
    sizes = [20_000] if given.quick else given.tracks
    answer: dict[str, Any] = {
        "processor": processor(),
        "versions": versions("numpy", "faiss-cpu"),
        "sizes": [],
    }
    for n in sizes:
        x_ND, group_N = clustered(n, given.dims)
        history_QH = histories(group_N, given.queries)
        query_QD = np.stack([x_ND[rows].mean(0) for rows in history_QH])
        exact = vector_index.make_index(vector_index.import_faiss(), x_ND, "flat")
        exact_QK = exact.search(query_QD, max(NEIGHBOURS))[1]
        del exact
        size: dict[str, Any] = {"tracks": n, "dims": given.dims, "indexes": []}
        for kind in given.kinds:
            size["indexes"].append(measure(x_ND, query_QD, kind, exact_QK))
            print(n, json.dumps(size["indexes"][-1]), flush=True)
        size["retriever"] = candidates(x_ND, group_N, history_QH)
        print(n, json.dumps(size["retriever"]), flush=True)
        answer["sizes"].append(size)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()

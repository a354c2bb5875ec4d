"""What a retriever model costs a recommendation: run in the replica, or read with the user's row.

    OMP_NUM_THREADS=1 python benchmarks/retriever.py [--quick]

A decoder of width 256 and 4 layers with random weights (`--hidden`, `--layers`), users of 50
listens, an item matrix of the catalogue's size, MCCA as the ranker, packed rows in Redis. In one
process and one loop: the pass for a user's vector, the search, the user's row with and without 200
candidates, and a whole recommendation (row, retrieval, 500 candidates ranked, 20 chosen) without a
retriever, live and batch. p50 and p99 of wall time and of CPU time of the calling thread; in which
order they are measured changes with every user. Last line JSON.

Shapes: I rows of items with the padding, D width.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import processor, versions
from benchmarks.redis_server import redis_server
from feature_repo import schema
from feature_repo.artifacts import Manifest
from feature_repo.workspace import Workspace
from models.llama import Llama
from models.llama_sizes import LlamaSizes
from models.mme_sid import MmeSid
from models.mme_sid_items import MmeSidConfig

USERS, LISTENS, TOP = 500, 50, 200
MODEL_ID = "model-benchmark"
FAMILIES, DIM, LEVELS, CODES, CODE_WIDTH = ("collaborative", "text", "audio"), 64, 4, 256, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10,000 tracks, 200 requests")
    parser.add_argument("--tracks", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    answer: dict[str, Any] = {
        "processor": processor(),
        "versions": versions("torch", "faiss-cpu", "feast"),
        "hidden": given.hidden,
        "layers": given.layers,
        "sizes": [],
    }
    for tracks in [10_000] if given.quick else given.tracks:
        model = random_model(tracks, given.hidden, given.layers)
        size = measured(model, tracks, requests=200 if given.quick else given.requests)
        answer["sizes"].append(size)
        show(size)
    print(json.dumps(answer))


def random_model(tracks: int, hidden: int, layers: int) -> MmeSid:
    """A decoder of this shape over `tracks` items with random tables."""
    torch.manual_seed(0)
    sizes = LlamaSizes(
        hidden=hidden,
        layers=layers,
        heads=4,
        kv_heads=4,
        head_dim=hidden // 4,
        intermediate=8 * hidden // 3 // 8 * 8,
        vocab=1,
    )
    config = MmeSidConfig(
        families=FAMILIES,
        dims=(DIM,) * len(FAMILIES),
        levels=LEVELS,
        codes=CODES,
        code_width=CODE_WIDTH,
    )
    rows = tracks + 1
    model = MmeSid(
        Llama(sizes),
        config,
        raw={family: torch.randn(rows, DIM) for family in FAMILIES},
        codes_IFL=torch.randint(0, CODES, (rows, len(FAMILIES), LEVELS)),
        code_embeddings=None,
        counts_I=torch.randint(0, 1000, (rows,)),
    )
    return model.eval().requires_grad_(False)


def measured(model: MmeSid, tracks: int, requests: int) -> dict[str, Any]:
    from benchmarks.serving_world import build
    from serving.ranker import ReleaseRanker
    from serving.recommendation import choose, retrieve
    from serving.releases import live_release
    from serving.retrieval.mme_sid_source import MmeSidSource
    from serving.retriever_choice import CANDIDATES
    from serving.schemas import RecommendRequest
    from serving.user_rows import UserRows

    random = np.random.default_rng(0)
    users = random.integers(1, USERS + 1, requests).tolist()
    with redis_server() as port, tempfile.TemporaryDirectory(prefix="retriever-") as name:
        folder, redis = Path(name) / "workspace", f"127.0.0.1:{port}"
        workspace = build(folder, redis, tracks=tracks, users=USERS)
        ranker = ReleaseRanker(workspace, live_release(workspace))
        ranker.load_retriever()
        plain = ranker.retriever
        assert plain is not None
        ids_I = np.arange(tracks + 1)
        with torch.inference_mode():
            matrix_ID = model.item_matrix().numpy()
        began = time.process_time()
        source = MmeSidSource(model, ids_I, matrix_ID, LISTENS)
        build_s = time.process_time() - began
        # With patience: on a busy machine a benchmark has nobody to answer in time.
        of_user = [f"{schema.USER_SEQUENCE}:{schema.SEQUENCE_TRACK_IDS}"]
        plain_rows = UserRows(workspace, ranker.store, of_user, 0.0)
        histories = {
            row: user.track_ids_L for row, user in zip(users, plain_rows.read(users), strict=True)
        }
        view = publish_proposed(workspace, source, histories)
        proposed = [f"{view}:{name}" for name in CANDIDATES]
        with_candidates = UserRows(workspace, ranker.store, [*of_user, *proposed], 0.0)

        def recommend(rows: UserRows, mme_sid: MmeSidSource | None) -> Callable[[int], object]:
            loaded = replace(plain, mme_sid=mme_sid)

            def one(user_id: int) -> object:
                ranker.retriever = loaded
                request = RecommendRequest(user_id=user_id)
                (user,) = rows.read([user_id])
                found = retrieve(ranker, user, request)
                ranking = ranker.ranking(user, found.track_ids_C.tolist())
                return choose(ranker, found, ranking, request)

            return one

        vectors = {user: source.user_vector(history) for user, history in histories.items()}
        parts: dict[str, Callable[[int], object]] = {
            "user's vector": lambda user: source.user_vector(histories[user]),
            "search of 250": lambda user: source.search(vectors[user], TOP + LISTENS),
            "row": lambda user: plain_rows.read([user]),
            "row with candidates": lambda user: with_candidates.read([user]),
            "recommendation, none": recommend(plain_rows, None),
            "recommendation, live": recommend(plain_rows, source),
            "recommendation, batch": recommend(with_candidates, None),
        }
        return {
            "tracks": tracks,
            "index_build_s": round(build_s, 2),
            **interleaved(parts, users),
        }


def publish_proposed(workspace: Workspace, source: Any, histories: dict[int, np.ndarray]) -> str:
    """The candidates of these users as `score-users` publishes them; returns the view."""
    from ray_jobs.candidate_parts import publish_source, work_folder, write_parts
    from ray_jobs.publish import publish_candidates
    from ray_jobs.user_scoring import CANDIDATES

    now = datetime.now(UTC)
    rows = [
        {
            schema.USER_ID: user,
            schema.EVENT_TIMESTAMP: now,
            schema.CANDIDATE_TRACK_IDS: source.nearest(history, TOP).tolist(),
            schema.CANDIDATE_SCORES: [0.0] * TOP,
            schema.CANDIDATE_MODEL: MODEL_ID,
            schema.CANDIDATES_MADE_AT: int(now.timestamp() * 1e6),
            "error": None,
            "history_hash": user,
        }
        for user, history in histories.items()
    ]
    view = schema.candidates_view_name(MODEL_ID)
    manifest = Manifest(
        kind="feature_source", id=view, parents={"model": MODEL_ID}, rows={"rows": len(rows)}
    )
    with work_folder(workspace, MODEL_ID) as folder:
        list(write_parts(folder, [pa.Table.from_pylist(rows, schema=CANDIDATES)]))
        publish_source(workspace, folder, manifest)
    publish_candidates(workspace, MODEL_ID)
    return view


def interleaved(
    parts: dict[str, Callable[[int], object]], users: list[int]
) -> dict[str, dict[str, float]]:
    """ms of each part, the parts in turn for one user after the other: one machine for all."""
    wall: dict[str, list[float]] = {name: [] for name in parts}
    cpu: dict[str, list[float]] = {name: [] for name in parts}
    for number, user in enumerate([*users[:20], *users]):
        turn = number % len(parts)
        for name, part in [*parts.items()][turn:] + [*parts.items()][:turn]:
            began, began_cpu = time.perf_counter(), time.thread_time()
            part(user)
            if number >= 20:  # after a warm-up
                cpu[name].append(1e3 * (time.thread_time() - began_cpu))
                wall[name].append(1e3 * (time.perf_counter() - began))
    return {
        name: {
            "p50_ms": round(float(np.median(wall[name])), 3),
            "p99_ms": round(float(np.quantile(wall[name], 0.99)), 3),
            "cpu_p50_ms": round(float(np.median(cpu[name])), 3),
            "cpu_p99_ms": round(float(np.quantile(cpu[name], 0.99)), 3),
        }
        for name in parts
    }


def show(size: dict[str, Any]) -> None:
    title = f"{size['tracks']:,} tracks; index in {size['index_build_s']} s of CPU"
    table = Table("ms", "p50", "p99", "CPU p50", "CPU p99", title=title)
    for name, figures in size.items():
        if isinstance(figures, dict):
            table.add_row(name, *(f"{figure:.2f}" for figure in figures.values()))
    Console(stderr=True, width=100).print(table)


if __name__ == "__main__":
    main()

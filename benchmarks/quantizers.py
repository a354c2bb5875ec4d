"""Exact PSRQ against plain k-means on the concatenated vectors, in one run: ours, peers, floor.

    python benchmarks/quantizers.py [--device cpu|cuda] [--quick]

On CUDA: Lloyd iterations of levels 2 and 3 against flash-kmeans (if installed: `pip install
flash-kmeans==0.3.1`) on the 2d vectors in bf16 and the matrix product alone; encoding of new
tracks against three products. On the CPU: whole fits and encoding against faiss. Every fit of a
level starts from the same centroids as its peer's. Prints tables; the last line is one JSON object.

Shape suffixes: N rows, D dims, K codes, J earlier levels.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import processor, versions
from models.kmeans import kmeans
from models.kmeans_start import initial_centroids
from models.psrq import PsrqOptions, fit
from models.rows import Centroids, Prefix

WEIGHT = 0.3
"""Prefix weight of the fits: about what `auto` finds on this data."""
WARM, LAST = 2, 26
"""Iterations after which timing begins and ends: 24 are timed, the graph is made before."""

FLASH_DIMS = 4096
"""Widest rows that flash-kmeans 0.3.1 takes: its update fails to compile at 8192."""


def embeddings(n: int, d: int, device: torch.device) -> Tensor:
    """Unit vectors from 2,000 groups on a curved 64-d surface, with noise: a stand-in for audio."""
    generator = torch.Generator(device=device).manual_seed(0)
    draw = {"device": device, "generator": generator}
    groups, lift = 2.0 * torch.randn(2_000, 64, **draw), 0.15 * torch.randn(64, d, **draw)
    x_ND = torch.empty(n, d, device=device)
    for start in range(0, n, 1 << 16):
        rows = min(1 << 16, n - start)
        z = groups[torch.randint(0, 2_000, (rows,), **draw)] + torch.randn(rows, 64, **draw)
        x_ND[start : start + rows] = torch.tanh(z @ lift) + 0.3 * torch.randn(rows, d, **draw)
    x_ND -= x_ND.mean(0)
    return x_ND.div_(x_ND.norm(dim=1, keepdim=True))


def seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median wall time, the device idle before and after."""
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def earlier_levels(x_ND: Tensor, k: int, count: int) -> tuple[Tensor, Prefix | None]:
    """The residual that `count` levels leave, and their codes as a prefix."""
    residual_ND, books, codes = x_ND, (), []
    for level in range(count):
        found = kmeans(residual_ND, k, iterations=5, seed=level)
        books += (found.centroids.x_KD,)
        codes.append(found.codes_N)
        residual_ND = residual_ND - books[-1].index_select(0, found.codes_N)
    if not count:
        return residual_ND, None
    return residual_ND, Prefix(codes_NJ=torch.stack(codes, 1), books=books, weight=WEIGHT)


def concatenated(x_ND: Tensor, prefix: Prefix | None, dtype: torch.dtype) -> Tensor:
    """[x ; alpha p], the matrix that ours never builds."""
    if prefix is None:
        return x_ND.to(dtype)
    n, d = x_ND.shape
    both = torch.empty(n, 2 * d, dtype=dtype, device=x_ND.device)
    for start in range(0, n, 1 << 16):
        part = slice(start, start + (1 << 16))
        both[part, :d] = x_ND[part].to(dtype)
        both[part, d:] = (WEIGHT * prefix.rows(part)).to(dtype)
    return both


def product_ms(n: int, d: int, k: int) -> float:
    """The matrix product of all rows and centroids alone, in bf16."""
    x_ND = torch.randn(n, d, device="cuda", dtype=torch.bfloat16)
    c_DK = torch.randn(d, k, device="cuda", dtype=torch.bfloat16)
    out = torch.empty(1 << 17, k, device="cuda", dtype=torch.bfloat16)

    def products() -> None:
        for start in range(0, n, 1 << 17):
            part = x_ND[start : start + (1 << 17)]
            torch.mm(part, c_DK, out=out[: len(part)])

    products()
    return 1e3 * seconds(products, torch.device("cuda"), 7)


def cuda_level(n: int, d: int, k: int, level: int) -> dict[str, Any]:
    """One level's Lloyd iteration, ours and flash-kmeans on the 2d vectors, from one start."""
    device = torch.device("cuda")
    x_ND, prefix = earlier_levels(embeddings(n, d, device), k, level - 1)
    begin = time.perf_counter()
    start = initial_centroids(x_ND, k, prefix=prefix, seed=9)
    torch.cuda.synchronize()
    first = time.perf_counter() - begin  # compiles and loads kernels
    begin_s = seconds(lambda: initial_centroids(x_ND, k, prefix=prefix, seed=9), device, 2)

    def run(iterations: int) -> Any:
        options = {"prefix": prefix, "start": start, "iterations": iterations, "tolerance": 0.0}
        return kmeans(x_ND, k, **options)

    run(WARM)
    short, early, whole = (seconds(lambda i=i: run(i), device, 3) for i in (WARM, 6, LAST))
    row = {
        "n": n, "d": d, "k": k, "level": level,
        "ours_ms": 1e3 * (whole - short) / (LAST - WARM),
        "ours_early_ms": 1e3 * (early - short) / (6 - WARM),
        "init_ms": 1e3 * min(begin_s, first),
        "fit_ms": 1e3 * whole,
        "product_ms": product_ms(n, d, k),
    }  # fmt: skip
    found = run(LAST)
    try:
        from flash_kmeans.kmeans_triton_impl import _euclid_iter, batch_kmeans_Euclid
    except ImportError:
        return row | {"flash_ms": None}
    if 2 * d > FLASH_DIMS:
        # Its update refuses such widths: its half of the problem stands for the whole.
        low = x_ND.bfloat16()[None]
        x_sq = low[0].float().square().sum(1).bfloat16()[None]
        c = start.x_KD.bfloat16()[None].contiguous()
        _euclid_iter(low, x_sq, c)
        row["flash_half_ms"] = 1e3 * seconds(lambda: _euclid_iter(low, x_sq, c), device, 5)
        return row | {"flash_ms": None, "ratio_to_half": row["flash_half_ms"] / row["ours_ms"]}
    both = concatenated(x_ND, prefix, torch.bfloat16)[None]
    centroids = start.x_KD
    if prefix is not None and start.prefix_KD is not None:
        centroids = torch.cat([centroids, WEIGHT * start.prefix_KD], 1)
    centroids = centroids.bfloat16()[None].contiguous()
    x_sq = torch.cat([part.float().square().sum(1).bfloat16() for part in both[0].split(1 << 16)])
    _euclid_iter(both, x_sq[None], centroids)
    row["flash_ms"] = 1e3 * seconds(lambda: _euclid_iter(both, x_sq[None], centroids), device, 5)
    theirs = batch_kmeans_Euclid(both, k, max_iters=LAST, init_centroids=centroids)[1][0].float()
    halves = Centroids(x_KD=theirs[:, :d].contiguous())
    if prefix is not None:
        halves = Centroids(x_KD=halves.x_KD, prefix_KD=(theirs[:, d:] / WEIGHT).contiguous())
    peer = kmeans(x_ND, k, prefix=prefix, start=halves, iterations=0).objective
    return row | {
        "ratio": row["flash_ms"] / row["ours_ms"],
        "objective_ratio": found.objective / peer,
    }


def cuda_encode(n: int, d: int, k: int) -> dict[str, Any]:
    """Codes of new tracks, exact, against one product for each of three levels."""
    x_ND = embeddings(n, d, torch.device("cuda"))
    options = PsrqOptions(codes=k, prefix_weight=WEIGHT, iterations=10)
    book = fit(x_ND, options)[0].to(x_ND.device)
    book.encode(x_ND)
    ours = 1e3 * seconds(lambda: book.encode(x_ND), x_ND.device, 7)
    floor = 3 * product_ms(n, d, k)
    return {
        "n": n, "d": d, "k": k, "levels": 3,
        "ours_ms": ours, "products_ms": floor, "over_products": ours / floor,
    }  # fmt: skip


def cpu_fit(n: int, d: int, k: int, iterations: int) -> dict[str, Any]:
    """Three levels against faiss.Kmeans on the 2d vectors: starts, iterations, threads equal."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    device = torch.device("cpu")
    residual_ND, books, codes = embeddings(n, d, device), (), []
    levels, flats = [], []
    for level in range(3):
        prefix = None
        if level:
            prefix = Prefix(codes_NJ=torch.stack(codes, 1), books=books, weight=WEIGHT)
        begin = time.perf_counter()
        start = initial_centroids(residual_ND, k, prefix=prefix, seed=level)
        init_s = time.perf_counter() - begin
        options = {"prefix": prefix, "start": start, "iterations": iterations, "tolerance": 0.0}
        begin = time.perf_counter()
        found = kmeans(residual_ND, k, **options)
        ours_s = time.perf_counter() - begin
        both = concatenated(residual_ND, prefix, torch.float32).numpy()
        centroids = start.x_KD
        if start.prefix_KD is not None:
            centroids = torch.cat([centroids, WEIGHT * start.prefix_KD], 1)
        peer = faiss.Kmeans(
            both.shape[1], k, niter=found.iterations, max_points_per_centroid=n, seed=1
        )
        begin = time.perf_counter()
        peer.train(both, init_centroids=centroids.numpy())
        faiss_s = time.perf_counter() - begin
        flat = faiss.IndexFlatL2(both.shape[1])
        flat.add(peer.centroids)
        begin = time.perf_counter()
        distance, _ = flat.search(both, 1)
        flats.append(time.perf_counter() - begin)
        levels.append(
            {
                "level": level + 1, "iterations": found.iterations, "init_s": init_s,
                "ours_s": ours_s, "faiss_s": faiss_s, "ratio": faiss_s / ours_s,
                "objective_ratio": found.objective / float(distance.astype("float64").sum()),
            }
        )  # fmt: skip
        books += (found.centroids.x_KD,)
        codes.append(found.codes_N)
        residual_ND = residual_ND - books[-1].index_select(0, found.codes_N)
        print(levels[-1], flush=True)
    x_ND = embeddings(n, d, device)
    book = fit(x_ND[:20_000], PsrqOptions(codes=k, prefix_weight=WEIGHT, iterations=5))[0]
    encode_s = seconds(lambda: book.encode(x_ND), device, 3)
    return {
        "n": n, "d": d, "k": k, "levels": levels,
        "ratio": sum(r["faiss_s"] for r in levels) / sum(r["ours_s"] for r in levels),
        "encode_s": encode_s, "faiss_flat_s": sum(flats), "encode_ratio": sum(flats) / encode_s,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes, within a minute")
    given = parser.parse_args()
    answer: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if given.device == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "versions": versions("torch", "faiss-cpu"),
    }
    if given.device == "cpu":
        size = (20_000, 256, 128, 5) if given.quick else (100_000, 768, 256, 25)
        answer["fit"] = cpu_fit(*size)
    else:
        million = 1_000_000
        sizes = [(million, 768, 1024, 2), (million, 768, 1024, 3), (million, 768, 256, 2),
                 (million, 768, 256, 3), (million, 768, 4096, 2), (million, 768, 4096, 3),
                 (million // 2, 4096, 1024, 2), (million // 2, 4096, 1024, 3)]  # fmt: skip
        if given.quick:
            sizes = [(200_000, 256, 256, 2), (200_000, 256, 256, 3)]
        answer["lloyd"] = []
        for size in sizes:
            answer["lloyd"].append(cuda_level(*size))
            torch.cuda.empty_cache()
            print(answer["lloyd"][-1], flush=True)
        answer["encode"] = cuda_encode(
            *((200_000, 256, 256) if given.quick else (million, 768, 1024))
        )
    print(json.dumps(answer))


if __name__ == "__main__":
    main()

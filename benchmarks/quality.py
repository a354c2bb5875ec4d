"""How long all measures of ID quality take, and how much memory.

    python benchmarks/quality.py [--rows 1000000] [--dims 128] [--codes 256] [--quick]

Random clusters, L = 3; the books are fitted on a sample of the rows, which is not timed. All
measures of `models.sid_quality` are: with reference labels and co-listened pairs. Peak memory is
that of the process, data and libraries included; `added_peak_mb` is what measuring added to the
peak before it. The last line is one JSON object.
"""

import argparse
import json
import resource
import time

import numpy as np
import torch

from models.psrq import PsrqOptions, fit
from models.sid_quality import quality

CLUSTERS, FIT_ROWS, BLOCK = 5_000, 30_000, 65_536


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dims", type=int, default=128)
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="100,000 rows")
    options = parser.parse_args()
    rows = 100_000 if options.quick else options.rows
    torch.set_num_threads(options.threads)

    x_ND = clusters(rows, options.dims)
    book, _, _ = fit(x_ND[:FIT_ROWS], PsrqOptions(codes=options.codes, iterations=5))
    codes_NL = book.encode(x_ND)
    random = np.random.default_rng(0)
    reference_N = random.integers(0, 64, rows)
    co_listened_P2 = random.integers(0, rows, (20_000, 2))

    before = peak_bytes()
    started = time.perf_counter()
    measures = quality(x_ND, codes_NL, book, reference_N=reference_N, co_listened_P2=co_listened_P2)
    seconds = time.perf_counter() - started
    result = {
        "rows": rows,
        "dims": options.dims,
        "codes": options.codes,
        "threads": options.threads,
        "seconds": round(seconds, 1),
        "data_mb": round(x_ND.nbytes / 1e6),
        "peak_mb": round(peak_bytes() / 1e6),
        "added_peak_mb": round((peak_bytes() - before) / 1e6),
        "neighbour_queries": measures["neighbour_recall"]["queries"],
        "neighbours_searched": measures["neighbour_recall"]["searched"],
    }
    print(f"{rows:,} x {options.dims}, k = {options.codes}, {options.threads} threads")
    print(f"  {seconds:.1f} s, peak {result['peak_mb']:,} MB with {result['data_mb']:,} MB of data")
    print(json.dumps(result))


def clusters(rows: int, dims: int) -> torch.Tensor:
    """Unit vectors around CLUSTERS centres."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLUSTERS, dims, generator=generator)
    x_ND = torch.empty(rows, dims)
    for part in x_ND.split(BLOCK):
        chosen = torch.randint(CLUSTERS, (len(part),), generator=generator)
        part.copy_(centres[chosen]).add_(torch.randn(part.shape, generator=generator))
        part.div_(part.norm(dim=1, keepdim=True))
    return x_ND


def peak_bytes() -> int:
    """Largest resident size of this process so far; Linux counts it in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()

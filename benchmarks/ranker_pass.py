"""Time of the model itself for one request: tables on the CPU, recorded passes on a GPU.

    python -m benchmarks.ranker_pass [--tracks 100000]

MCCA (d' = 64, three families, 3 codes of 128, 50 listens) with random weights; what a pass costs
does not depend on them. On the CPU one thread, `FastScores`; with a CUDA device `CudaScores`, from
the host's arrays to the host's logits, copies and synchronisation included; and on either the model
as it was trained, on the padded batch that it takes. Prints a table and the largest difference of
the logits, last line JSON. Writes nothing. Needs torch, numpy and numba (for the CPU part).
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.machine import processor, versions
from models.batch import ItemLookup, ItemTable, Vocabulary, make_batch, track_rows
from models.ranker_config import RankerConfig
from models.rankers import build_ranker
from serving.score_tables import ScoreTables

LISTENS = 50
CANDIDATES = (100, 500, 1000, 2000)
ROUNDS = 200


def percentiles_ms(call: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float]:
    """p50 and p99."""
    for _ in range(10):
        call()
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    p50, p99 = np.percentile(took, [50, 99]) * 1e3
    return float(p50), float(p99)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tracks", type=int, default=100_000)
    tracks = parser.parse_args().tracks
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    config = RankerConfig(
        model="mcca",
        id_rows=tracks + 1,
        families=("text", "audio", "joint"),
        levels=3,
        codes=128,
        history_length=LISTENS,
    )
    model = build_ranker(config).eval()
    ids_I = np.arange(1, tracks + 1)
    codes_IFL = random.integers(0, 128, (tracks, 3, 3))
    lookup = ItemLookup.of(
        ItemTable(track_ids_I=ids_I, codes_IFL=codes_IFL),
        Vocabulary(track_ids_I=ids_I, train_counts_I=np.ones(tracks, dtype=np.int64)),
        torch.device("cpu"),
    )
    tables = ScoreTables.of(model, config, lookup)
    assert tables is not None
    history_L = random.integers(1, tracks + 1, LISTENS)
    passes: dict[str, Callable[[np.ndarray], torch.Tensor]] = {}
    try:
        from serving.fast_scores import FastScores
    except ImportError as error:
        print(f"no CPU rows: {error}")
    else:
        fast = FastScores(tables)
        passes["tables, one CPU thread"] = lambda tracks_C: fast.logits(history_L, tracks_C)
    if torch.cuda.is_available():
        from serving.cuda_scores import CudaScores

        began = time.perf_counter()
        cuda = CudaScores(tables)
        print(f"records for all buckets made in {time.perf_counter() - began:.2f} s")
        passes["tables, recorded on the GPU"] = lambda tracks_C: cuda.logits(history_L, tracks_C)

    @torch.inference_mode()
    def plain(tracks_C: np.ndarray) -> torch.Tensor:
        rows = track_rows(
            torch.from_numpy(tracks_C),
            torch.from_numpy(np.tile(history_L, len(tracks_C))),
            torch.arange(len(tracks_C) + 1) * LISTENS,
            history_length=LISTENS,
        )
        return model(make_batch(rows, lookup))

    passes["model as trained, one CPU thread"] = plain
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"{processor()}; {device}; {versions('torch', 'numba')}; {tracks:,} tracks")
    print(f"{'candidates':>10}  {'pass':34} {'p50 ms':>8} {'p99 ms':>8} {'max |difference|':>17}")
    answer: dict[str, float] = {}
    for count in CANDIDATES:
        tracks_C = np.sort(random.choice(ids_I, count, replace=False))
        expected_C = plain(tracks_C)
        for name, logits in passes.items():
            rounds = 5 if logits is plain else ROUNDS
            p50, p99 = percentiles_ms(lambda logits=logits, of=tracks_C: logits(of), rounds)
            apart = float((logits(tracks_C) - expected_C).abs().max())
            print(f"{count:10}  {name:34} {p50:8.3f} {p99:8.3f} {apart:17.1e}")
            answer[f"{'gpu' if 'GPU' in name else name.split(',')[0]}_{count}_ms"] = round(p50, 3)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()

"""Nearest tracks by inner product of unit vectors, with Faiss: flat, IVF or HNSW by size.

    index = VectorIndex.build(track_ids, vectors)
    index = index.grown(new_track_ids, new_vectors)
    places, products = index.nearest(query, 200)
    index.track_ids[places]

An index never changes, so one thread may search it while another makes the next. Tracks that came
since it was built are searched beside it, exactly, until they are as many as are searched exactly
anyway; then all are indexed anew. On a GPU, where faiss-gpu finds one, flat and IVF lie there.

Shape suffixes: V indexed tracks, N tracks of any number, H listens, D dims, C found tracks.
"""

import math
import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from feature_repo.errors import InputError

FLAT_VALUES = 1 << 21
"""Vectors of up to so many values in all are searched exactly, in about a millisecond of a core."""
IVF_VALUES = 1 << 20
"""IVF looks into the cells that hold about so many: the same time again, at any size."""
IVF_SHARE = 1 / 16
"""Of the cells; so many are looked into at least, where vectors are long."""
IVF_MOST_VALUES = 1 << 23
"""But no more of them than hold about so many: a search of 3 ms, at any size."""
IVF_FITTED_PER_CELL = 40
IVF_TRACKS = 1 << 24
"""Above, HNSW, whose search hardly grows with the tracks; nothing was measured there. Up to 4
million of 64 dims IVF is the better one by far: there it is built in 50 s of a core and finds .989
of the nearest 500 in 3.4 ms. Of one million HNSW, built in 282 s, finds .70 in 1.8 ms, searched 8
times as wide .93 in 11; IVF, built in 11 s, .985 in 2.2."""
GPU_FLAT_VALUES = 1 << 30
"""On a GPU: 4 GiB, which its memory delivers in a few milliseconds."""
HNSW_LINKS = 16
HNSW_BUILD_WIDTH = 60
HNSW_SEARCH_WIDTH = 400
MOST_FOUND = 2048
"""Of one search: what faiss-gpu gives at most."""
THREADS = 1
"""Of a build and of a search: the cores of a serving machine have requests to answer."""


def index_kind(tracks: int, dims: int, *, gpu: bool) -> str:
    """`flat`, `hnsw` or `ivf`."""
    if tracks * dims <= (GPU_FLAT_VALUES if gpu else FLAT_VALUES):
        return "flat"
    return "hnsw" if tracks > IVF_TRACKS and not gpu else "ivf"


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Tracks that one Faiss index holds, in its order."""

    track_ids_V: np.ndarray
    """Rising."""
    x_VD: np.ndarray
    """float16: what queries are made of, whatever the index keeps of it."""
    kind: str
    index: Any

    @classmethod
    def build(cls, track_ids_V: np.ndarray, x_VD: np.ndarray, kind: str | None = None) -> "Part":
        faiss = import_faiss()
        gpu = faiss.get_num_gpus() > 0
        kind = kind or index_kind(*x_VD.shape, gpu=gpu)
        faiss.omp_set_num_threads(THREADS)
        index = make_index(faiss, x_VD.astype(np.float32), kind)
        if gpu and kind != "hnsw":
            index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
        return cls(track_ids_V=track_ids_V, x_VD=x_VD, kind=kind, index=index)


class VectorIndex:
    """Tracks and their unit vectors; `parts`: the index, and what came since it was built."""

    def __init__(self, parts: tuple[Part, ...]) -> None:
        self._parts = parts
        self.track_ids = np.concatenate([part.track_ids_V for part in parts])
        """In the order of the places below, which is rising but for late tracks."""
        self._lock = threading.Lock()  # a GPU's scratch memory serves one search at a time

    @classmethod
    def build(cls, track_ids_V: np.ndarray, x_VD: np.ndarray) -> "VectorIndex":
        """`track_ids_V` rising, `x_VD` their vectors of norm 1. InputError without Faiss."""
        return cls((Part.build(track_ids_V, x_VD.astype(np.float16)),))

    def grown(self, track_ids_N: np.ndarray, x_ND: np.ndarray) -> "VectorIndex":
        """With tracks that this one does not hold, ids rising. Quick, unless they are many."""
        main, late = self._parts[0], self._parts[1:]
        rows = [(part.track_ids_V, part.x_VD) for part in late]
        rows.append((track_ids_N, x_ND.astype(np.float16)))
        if main.kind == "flat" or sum(x.size for _, x in rows) > FLAT_VALUES:
            return VectorIndex((Part.build(*_merged([(main.track_ids_V, main.x_VD), *rows])),))
        return VectorIndex((main, Part.build(*_merged(rows), kind="flat")))

    @property
    def size(self) -> int:
        return len(self.track_ids)

    @property
    def kind(self) -> str:
        return self._parts[0].kind

    def vectors(self, places_H: np.ndarray) -> np.ndarray:
        """float32 vectors (H, D) of the tracks at these places of `track_ids`."""
        main = self._parts[0]
        if len(self._parts) == 1:
            return main.x_VD[places_H].astype(np.float32)
        late_H = places_H >= len(main.x_VD)
        x_HD = np.empty((len(places_H), main.x_VD.shape[1]), dtype=np.float32)
        x_HD[~late_H] = main.x_VD[places_H[~late_H]]
        x_HD[late_H] = self._parts[1].x_VD[places_H[late_H] - len(main.x_VD)]
        return x_HD

    def nearest(self, query_D: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Places (C,) in `track_ids` and inner products of at most `count` tracks, nearest first.

        Fewer than `count` beyond MOST_FOUND, where fewer are held, or where IVF's searched cells
        hold fewer.
        """
        query_1D = np.ascontiguousarray(query_D[None], dtype=np.float32)
        found, start = [], 0
        with self._lock:
            import_faiss().omp_set_num_threads(THREADS)
            for part in self._parts:
                wanted = min(count, len(part.track_ids_V), MOST_FOUND)
                if wanted:
                    product_1C, place_1C = part.index.search(query_1D, wanted)
                    held_C = place_1C[0] >= 0
                    found.append((place_1C[0][held_C] + start, product_1C[0][held_C]))
                start += len(part.track_ids_V)
        if not found:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        if len(found) == 1:
            return found[0]
        place_C, product_C = (np.concatenate(parts) for parts in zip(*found, strict=True))
        best_C = np.argsort(-product_C, kind="stable")[:count]
        return place_C[best_C], product_C[best_C]


def make_index(faiss: ModuleType, x_VD: np.ndarray, kind: str) -> Any:
    """A Faiss index of one kind over float32 rows, tuned as the constants above say."""
    count, dims = x_VD.shape
    if kind == "flat":
        index = faiss.IndexFlatIP(dims)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(dims, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = HNSW_BUILD_WIDTH
        index.hnsw.efSearch = HNSW_SEARCH_WIDTH
    else:
        cells = ivf_cells(count)
        coarse = faiss.IndexFlatIP(dims)
        index = faiss.IndexIVFFlat(coarse, dims, cells, faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid = IVF_FITTED_PER_CELL
        index.nprobe = searched_cells(cells, x_VD.size)
        index.train(x_VD)
    index.add(x_VD)
    return index


def ivf_cells(count: int) -> int:
    """2 to 4 sqrt(count), a power of two: cells of some dozens of tracks, some hundreds at most."""
    return 2 << (int(np.sqrt(max(1, count))) - 1).bit_length()


def searched_cells(cells: int, values: int) -> int:
    """How many of an IVF index's cells a search looks into, which holds so many values in all."""
    share = max(min(IVF_SHARE, IVF_MOST_VALUES / values), IVF_VALUES / values)
    return min(cells, math.ceil(cells * share))


def import_faiss() -> ModuleType:
    """Faiss is no dependency of the package: which of its two builds fits, the machine says."""
    try:
        import faiss
    except ImportError as error:
        raise InputError(
            "recommending needs Faiss, which is not installed; run `pip install crescendo[cpu]`, "
            "or crescendo[gpu] on a machine with an NVIDIA GPU"
        ) from error
    except RuntimeError as error:  # so says faiss-gpu where NVIDIA's libraries are not beside it
        raise InputError(f"Faiss is installed and cannot be loaded: {error}") from error
    return faiss


def _merged(rows: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and vectors of all rows, ids rising."""
    track_ids_N = np.concatenate([ids for ids, _ in rows])
    order_N = np.argsort(track_ids_N, kind="stable")
    return track_ids_N[order_N], np.concatenate([x for _, x in rows])[order_N]

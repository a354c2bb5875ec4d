"""The nearest centroid on a CUDA device: rows as the kernels read them, and exact codes.

Rows are grouped once by their code in the first earlier book, so that this book's table of inner
products is a plain bias of each tile; the tables of further books are gathered inside the kernel.
`propose` takes the best score of float16 products. `exact` gives the codes of `NearestCentroid`:
where two upper limits of scores are too near, float64 distances choose. Nothing waits for the
device, so that the levels of `encode` follow each other without a gap.

Shape suffixes: N rows, D dims, P padded dims, K codes, J earlier books, L levels, C codes of an
earlier book, G those of the first one.
"""

import math
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from models.centroid_scores import CentroidScores
from models.cuda_choice import Exact, choose
from models.cuda_kernels import (
    BK,
    Limits,
    Packed,
    Scored,
    Tiles,
    column_block,
    nearest,
    pack,
    tiles,
)
from models.rows import EPS, LARGEST, check_rows

HALF = 2.0**-11
"""Largest relative error of rounding to float16."""
SLACK = 1 + 2.0**-12
"""Covers the rounding of float32 norms."""


class PackedRows:
    """float16 copies of x - centre, by `codes_NJ[:, 0]` where the search has a group table."""

    def __init__(self, x_ND: Tensor, codes_NJ: Tensor | None, search: "CudaNearest") -> None:
        self.order_N: Tensor | None = None
        self.codes_JN: Tensor | None = None
        groups = len(search.c.bias_GK)
        group_N = torch.zeros(len(x_ND), dtype=torch.int64, device=x_ND.device)
        if search.grouped and codes_NJ is not None:
            narrow = torch.int16 if groups < 2**15 else torch.int32
            group_N, self.order_N = codes_NJ[:, 0].to(narrow).sort(stable=True)
            group_N = group_N.long()
        self.tiles: Tiles = tiles(group_N, groups)
        self.rows: Packed = pack(x_ND, search.scores.centre_D, self.order_N)
        self.gather_codes(codes_NJ, search)

    def gather_codes(self, codes_NJ: Tensor | None, search: "CudaNearest") -> None:
        """Codes for the tables that the search gathers: the same rows may be searched again."""
        if search.c.tables_JCK is None or codes_NJ is None:
            return
        codes_NJ = codes_NJ[:, 1:] if search.grouped else codes_NJ
        if self.order_N is not None:
            codes_NJ = codes_NJ.index_select(0, self.order_N)
        self.codes_JN = codes_NJ.T.int().contiguous()

    def unsorted(self, values_N: Tensor) -> Tensor:
        """Values of the grouped rows, in the order in which the rows came."""
        if self.order_N is None:
            return values_N
        return torch.empty_like(values_N).scatter_(0, self.order_N, values_N)


class CudaNearest:
    """One set of centroids, prepared for the kernels."""

    def __init__(self, scores: CentroidScores) -> None:
        self.scores = scores
        self.grouped = bool(scores.tables) and not scores.subtract
        c_KD, rest = scores.c_KD, list(scores.tables)
        bias_GK = scores.bias_K[None]
        if self.grouped:
            bias_GK, rest = rest[0], rest[1:]
        elif rest:
            rest[0] = rest[0] - bias_GK
        # A constant of a row changes no choice: values about 0 lose least in float16.
        rest = [table - (table.amax(1) + table.amin(1))[:, None] / 2 for table in rest]
        k, d = c_KD.shape
        self.k = -(-k // column_block(k)) * column_block(k)
        # A power of two that brings the largest value to [2^9, 2^10); 0 stays 0.
        largest = c_KD.abs().max().clamp_min(2.0**-100)
        unit = torch.exp2(largest.log2().floor() - 9)
        self.c_KP = pad(c_KD / unit, (0, -d % BK, 0, self.k - k))
        self.tables = [bias_GK, *rest] if self.grouped else rest
        """float32, as the kernels add them; the bias apart, where rows have no groups."""
        self.table_norm = bias_GK.abs().max()
        self.table_off = torch.zeros((), device=c_KD.device)
        tables_JCK = table_scale = None
        if rest:
            rest_JCK = pad(_stack(tuple(rest)), (0, self.k - k))
            # float16 keeps 11 bits of values up to 1; rows of up to LARGEST must not overflow.
            largest = torch.maximum(rest_JCK.abs().max(), scores.c_norm / LARGEST)
            table_scale = torch.exp2(largest.clamp_min(2.0**-100).log2().ceil())
            self.table_norm = self.table_norm + table_scale * len(rest)
            rest_JCK = rest_JCK / table_scale
            tables_JCK = rest_JCK.half()
            off_JCK = (rest_JCK - tables_JCK.float()).abs()
            self.table_off = off_JCK.amax((1, 2)).sum() * table_scale
        self.c = Scored(
            values_KP=self.c_KP.half(),
            unit=unit,
            bias_GK=pad(bias_GK, (0, self.k - k), value=-math.inf).contiguous(),
            tables_JCK=tables_JCK,
            table_scale=table_scale,
        )

    def propose(self, packed: PackedRows) -> Tensor:
        """Codes (N,) int64 by float16 products, in the rows' own order. Nothing waits."""
        return packed.unsorted(
            nearest(packed.rows, self.c, packed.tiles, packed.codes_JN)[0]
        ).long()

    @cached_property
    def limits(self) -> Limits:
        """What float16 leaves out, of rows, centroids and tables; and what sums do: tensor cores
        cut what float32 cannot hold, by EPS a step of P products and, last, of the tables."""
        apart_KP = (self.c_KP - self.c.values_KP.float()) * self.c.unit
        left_K = torch.linalg.vector_norm(apart_KP, dim=1) * SLACK * (1 + HALF)
        norm_K = torch.linalg.vector_norm(self.c_KP, dim=1) * self.c.unit * SLACK
        late = 16 + 20 * len(self.tables)
        rough = [
            torch.full_like(self.table_off, EPS * SLACK * (self.c_KP.shape[1] + late)),
            EPS * SLACK * late * self.table_norm + 1e-35,
            self.table_off * SLACK,
        ]
        return Limits(norm_K=norm_K, left_K=left_K, rough_3=torch.stack(rough))

    @cached_property
    def distances(self) -> Exact:
        """Also takes copies out of all scores: made by the first search that is exact."""
        scores = self.scores
        bias_K = torch.zeros_like(scores.bias_K) if self.grouped else scores.bias_K.clone()
        if len(scores.copies):
            self.c.bias_GK[:, scores.copies] = bias_K[scores.copies] = -math.inf
        wide = self.k - len(bias_K)
        return Exact(
            c_KD=scores.centroids.x_KD.contiguous(),
            prefix_KD=scores.centroids.prefix_KD,
            subtract_JCD=_stack(scores.subtract) if scores.subtract else None,
            books_JCD=_stack(scores.books) if scores.books else None,
            weight=torch.tensor(scores.weight**2, dtype=torch.float64, device=bias_K.device),
            bias_K=pad(bias_K, (0, wide), value=-math.inf),
            tables_JCK=pad(_stack(tuple(self.tables)), (0, wide)) if self.tables else None,
        )

    def exact(
        self,
        x_ND: Tensor,
        codes_NJ: Tensor | None,
        packed: PackedRows | None = None,
        out_N: Tensor | None = None,
    ) -> Tensor:
        """The codes (N,) int64 that `NearestCentroid` gives on a CPU. `packed`: all of `x_ND`."""
        x_ND = x_ND.contiguous()
        distances, limits = self.distances, self.limits
        if out_N is None:
            out_N = torch.empty(len(x_ND), dtype=torch.int64, device=x_ND.device)
        if packed is None:
            packed = PackedRows(x_ND, codes_NJ, self)
        else:
            packed.gather_codes(codes_NJ, self)
        order_N = packed.order_N
        _, left = nearest(
            packed.rows, self.c, packed.tiles, packed.codes_JN,
            limits=limits, order_N=order_N, out_N=out_N,
        )  # fmt: skip
        assert left is not None
        choose(out_N, left, packed.rows, self.c, limits, distances, x_ND, codes_NJ, order_N)
        return out_N


def encode(searches: list[CudaNearest], x_ND: Tensor) -> Tensor:
    """Codes (N, L) int64 of rows on the device, packed once for all levels.

    ValueError naming the first row that is not finite.
    """
    codes_NL = torch.empty(len(x_ND), len(searches), dtype=torch.int64, device=x_ND.device)
    packed = PackedRows(x_ND, None, searches[0])
    good = (packed.rows.norm_N <= LARGEST).all()  # NaN too
    for level, search in enumerate(searches):
        search.exact(x_ND, codes_NL[:, :level], packed, codes_NL[:, level])
    if not good:  # read last: it waits for the device
        check_rows(x_ND)
    return codes_NL


def _stack(books: tuple[Tensor, ...]) -> Tensor:
    """Books or tables of equal width, one on the other; shorter ones end in zeros."""
    most = max(len(book) for book in books)
    return torch.stack([pad(book, (0, 0, 0, most - len(book))) for book in books]).contiguous()

"""The nearest centroid on a CUDA device: rows as the kernels read them, and exact codes.

Rows are grouped once by their code in the first earlier book, so that this book's table of inner
products is a plain bias of each tile; the tables of further books are gathered inside the kernel.
`propose` takes the best score of float16 products. `exact` gives the codes of `NearestCentroid`:
for rows whose two best scores lie within their worst rounding error, the kernel lists every
centroid that may be the nearest, and float64 distances choose.

Shape suffixes: N rows, A rows looked at again, P padded dims, K codes, J earlier books, C codes of
an earlier book, G those of the first one.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from models.cuda_kernels import BK, Packed, Tiles, choose, column_block, nearest, pack, tiles
from models.nearest import NearestCentroid
from models.rows import EPS, LARGEST, check_rows

HALF = 2.0**-12
"""Largest relative error of rounding to float16."""
CLOSE = 15
"""Close centroids listed for a row; rows with more are searched in float32."""


class PackedRows:
    """float16 copies of x - centre, grouped by `codes_NJ[:, 0]` where the search has a group table.

    Of rows `rows_A` alone, if given: `order_N` holds row numbers of `x_ND` all the same.
    """

    def __init__(
        self,
        x_ND: Tensor,
        codes_NJ: Tensor | None,
        search: "CudaNearest",
        *,
        rows_A: Tensor | None = None,
    ) -> None:
        self.order_N = rows_A
        self.codes_JN: Tensor | None = None
        groups = len(search.bias_GK)
        n = len(x_ND) if rows_A is None else len(rows_A)
        group_N = torch.zeros(n, dtype=torch.int64, device=x_ND.device)
        if search.grouped and codes_NJ is not None:
            narrow = torch.int16 if groups < 2**15 else torch.int32
            group_N = codes_NJ[:, 0] if rows_A is None else codes_NJ[:, 0].index_select(0, rows_A)
            group_N, order_N = group_N.to(narrow).sort(stable=True)
            self.order_N = order_N if rows_A is None else rows_A.index_select(0, order_N)
            group_N = group_N.long()
        self.tiles: Tiles = tiles(group_N, groups)
        self.rows: Packed = pack(x_ND, search.search.centre_D, self.order_N)
        self.gather_codes(codes_NJ, search)

    def gather_codes(self, codes_NJ: Tensor | None, search: "CudaNearest") -> None:
        """Codes for the tables that the search gathers: the same rows may be searched again."""
        if search.tables_JCK is None or codes_NJ is None:
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

    def __init__(self, search: NearestCentroid) -> None:
        self.search = search
        self.grouped = bool(search.tables) and not search.subtract
        c_KD, rest = search.c_KD, search.tables
        bias_GK = torch.zeros_like(search.bias_K[None]) if rest else search.bias_K[None]
        if self.grouped:
            bias_GK, rest = rest[0], rest[1:]
        k, d = c_KD.shape
        self.k = -(-k // column_block(k)) * column_block(k)
        # A power of two that brings the largest value to [2^9, 2^10); 0 stays 0.
        largest = c_KD.abs().max().clamp_min(2.0**-100)
        self.unit = torch.exp2(largest.log2().floor() - 9)
        self.c_KP = pad(c_KD / self.unit, (0, -d % BK, 0, self.k - k))
        self.high_KP = self.c_KP.half()
        self.c_norm = _longest(c_KD)
        self.bias_GK = pad(bias_GK, (0, self.k - k), value=-math.inf).contiguous()
        self.table_norm = bias_GK.abs().max()
        self.table_scale = self.tables_JCK = None
        self.table_off = torch.zeros((), device=c_KD.device)
        if rest:
            rest_JCK = pad(_stack(tuple(rest)), (0, self.k - k))
            # float16 keeps 11 bits of values up to 1.
            self.table_scale = rest_JCK.abs().max().clamp_min(2.0**-100)
            self.table_norm = self.table_norm + self.table_scale * len(rest)
            rest_JCK = rest_JCK / self.table_scale
            self.tables_JCK = rest_JCK.half()
            off_JCK = (rest_JCK - self.tables_JCK.float()).abs()
            self.table_off = off_JCK.amax((1, 2)).sum() * self.table_scale

    def propose(self, packed: PackedRows) -> Tensor:
        """Codes (N,) int64 by float16 products, in the rows' own order. Nothing waits."""
        return packed.unsorted(self._search(packed)[0]).long()

    def _search(
        self,
        packed: PackedRows,
        *,
        second: bool = False,
        limit_N: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return nearest(
            packed.rows,
            self.high_KP,
            self.unit,
            self.bias_GK,
            packed.tiles,
            tables_JCK=self.tables_JCK,
            table_scale=self.table_scale,
            codes_JN=packed.codes_JN,
            second=second,
            limit_N=limit_N,
            close=0 if limit_N is None else CLOSE,
        )

    def exact(
        self, x_ND: Tensor, codes_NJ: Tensor | None, packed: PackedRows | None = None
    ) -> Tensor:
        """The codes (N,) int64 that `NearestCentroid` gives on a CPU. `packed`: all of `x_ND`."""
        search = self.search
        x_ND = x_ND.contiguous()
        codes_NJ = None if codes_NJ is None else codes_NJ.contiguous()
        if len(search.copies):
            self.bias_GK[:, search.copies] = -math.inf
        if packed is None:
            packed = PackedRows(x_ND, codes_NJ, self)
        else:
            packed.gather_codes(codes_NJ, self)
        codes_N, best_N, second_N = self._search(packed, second=True)
        limit_N = best_N - 2 * self._left_out(packed.rows)
        open_N = packed.unsorted(~(limit_N > second_N))
        limit_N, out_N = packed.unsorted(limit_N), packed.unsorted(codes_N).long()
        again_A = open_N.nonzero()[:, 0]
        if not len(again_A):
            return out_N
        packed = PackedRows(x_ND, codes_NJ, self, rows_A=again_A)
        row_A = again_A if packed.order_N is None else packed.order_N
        _, _, found_AC = self._search(packed, limit_N=limit_N.index_select(0, row_A))
        choose(
            out_N,
            x_ND,
            codes_NJ,
            row_A,
            found_AC,
            c_KD=search.centroids.x_KD.contiguous(),
            subtract_JCD=_stack(search.subtract) if search.subtract else None,
            books_JCD=_stack(search.books) if search.books else None,
            prefix_KD=search.centroids.prefix_KD,
            weight=search.weight,
        )
        full_A = row_A[found_AC[:, 0] > CLOSE]
        if len(full_A):
            x_AD = x_ND.index_select(0, full_A)
            codes_AJ = None if codes_NJ is None else codes_NJ.index_select(0, full_A)
            out_N[full_A] = search.float32_codes(x_AD, codes_AJ)
        return out_N

    def _left_out(self, rows: Packed) -> Tensor:
        """How far a score may be off: what float16 left out of rows, centroids and tables, and the
        sum of P products, of which the tensor cores cut what float32 cannot hold: EPS a step."""
        c_off = _longest(self.c_KP - self.high_KP.float()) * self.unit
        steps = EPS * (self.c_KP.shape[1] + 2 * len(self.search.tables) + 16)
        off_N = rows.error_N * self.c_norm + rows.norm_N * (1 + HALF) * c_off
        off_N += steps * (rows.norm_N * self.c_norm + self.table_norm)
        return off_N + self.table_off + 1e-35


def encode(searches: list[CudaNearest], x_ND: Tensor) -> Tensor:
    """Codes (N, L) int64 of rows on the device, packed once for all levels.

    ValueError naming the first row that is not finite.
    """
    codes_NL = torch.empty(len(x_ND), len(searches), dtype=torch.int64, device=x_ND.device)
    packed = PackedRows(x_ND, None, searches[0])
    if not (packed.rows.norm_N <= LARGEST).all():  # NaN too
        check_rows(x_ND)
    for level, search in enumerate(searches):
        codes_NL[:, level] = search.exact(x_ND, codes_NL[:, :level], packed)
    return codes_NL


def _stack(books: tuple[Tensor, ...]) -> Tensor:
    """Books or tables of equal width, one on the other; shorter ones end in zeros."""
    most = max(len(book) for book in books)
    return torch.stack([pad(book, (0, 0, 0, most - len(book))) for book in books]).contiguous()


def _longest(x_KP: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x_KP, dim=1).max()

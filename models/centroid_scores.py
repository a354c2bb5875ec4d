"""Scores of rows and centroids: minus half the squared distance, up to a constant of the row.

Points are [x ; alpha * p]. The first half x is data; the second half p, the *prefix* of PSRQ (paper
section 1), is a sum of one row from each earlier codebook, so its inner products come from K x K
tables and it is never built.

Shape suffixes: M rows of one chunk, D dims, K codes, J earlier levels.
"""

import math
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from models.rows import EPS, Centroids
from models.threads import product


class CentroidScores:
    """-(||x - c_k||^2 + alpha^2 ||p - c_p,k||^2) / 2, prepared once for one set of centroids.

    Rows and centroids lie on one device, CPU or CUDA.
    """

    def __init__(
        self,
        centroids: Centroids,
        books: tuple[Tensor, ...] = (),
        weight: float = 0.0,
        *,
        centre_D: Tensor | None = None,
        prefix_centre_D: Tensor | None = None,
        shift: bool | None = None,
        subtract: tuple[Tensor, ...] | None = None,
    ) -> None:
        """The centres, by default the centroids' means, only keep the products' rounding small.

        `shift`: whether rows are centred too (a copy of each), by default where that would help.
        `subtract`: books of the earlier levels (none at level 1); rows are then whole items x, and
        the nearest centroid of x - sum_j b_j is found: (x - b).c = x.c - b.c is one more table, so
        that an item is prepared once for all its levels.
        """
        self.centroids, self.books, self.weight = centroids, books, weight
        self.subtract = subtract or ()
        c_KD = centroids.x_KD.double()
        # argmin ||x - c||^2 = argmax (x-m).(c-m) - ||c-m||^2/2 for any m; the mean keeps it small.
        self.centre_D = c_KD.mean(0).float() if centre_D is None else centre_D
        # Kernels centre rows as they read them; on the CPU a far centre alone is worth the copies.
        self.shift = shift
        if subtract is not None:
            bias_K = -0.5 * c_KD.square().sum(1)
            c_KD = c_KD - c_KD.mean(0)
        else:
            c_KD = c_KD - self.centre_D.double()
            bias_K = -0.5 * c_KD.square().sum(1) - c_KD @ self.centre_D.double()
        self.c_KD = c_KD.float()
        self.c_norm = c_KD.norm(dim=1).max().float()
        if shift is None:
            self.shift = c_KD.is_cuda or float(self.centre_D.norm()) > float(self.c_norm)
        if self.shift:
            bias_K += c_KD @ self.centre_D.double()
        tables = [-product(book.double(), c_KD.T) for book in self.subtract]
        if centroids.prefix_KD is not None:
            q_KD = centroids.prefix_KD.double()
            mean_D = q_KD.mean(0) if prefix_centre_D is None else prefix_centre_D.double()
            q_KD = q_KD - mean_D
            bias_K = bias_K - 0.5 * weight**2 * q_KD.square().sum(1)
            # alpha^2 (p-m).(c_p-m) = sum_j alpha^2 book_j[code_j].(c_p-m), m folded into book 0
            found = [
                weight**2 * product(book.double() - mean_D * (j == 0), q_KD.T)
                for j, book in enumerate(books)
            ]
            tables = [a + b for a, b in zip(tables, found, strict=True)] if tables else found
        if tables:
            tables[0] += bias_K
        self.tables = [table.float() for table in tables]
        self.bias_K = bias_K.float()
        norms = [table.abs().max() for table in self.tables or [self.bias_K]]
        self.table_norm = torch.stack(norms).sum()

    @cached_property
    def copies(self) -> Tensor:
        """Centroids equal to an earlier one: they lose every tie, so that to leave them out of the
        products' scores saves their exact scoring."""
        both_KD = self.centroids.x_KD
        if self.centroids.prefix_KD is not None:
            both_KD = torch.cat([both_KD, self.centroids.prefix_KD], 1)
        both_KD = both_KD + 0.0  # -0.0 and 0.0 are one value, and two bit patterns
        # Equal rows have equal sums of bits times odd numbers; what has equal sums is compared.
        generator = torch.Generator().manual_seed(0)
        odd_D = torch.randint(-(2**62), 2**62, (both_KD.shape[1],), generator=generator) * 2 + 1
        sum_K = (both_KD.view(torch.int32).long() * odd_D.to(both_KD.device)).sum(1)
        sum_K, order_K = sum_K.sort(stable=True)
        again = (sum_K[1:] == sum_K[:-1]).nonzero()[:, 0].cpu() + 1
        copies = []
        for place in again.tolist():
            first = int((sum_K == sum_K[place]).nonzero()[0, 0])
            if torch.equal(both_KD[order_K[place]], both_KD[order_K[first]]):
                copies.append(int(order_K[place]))
        return torch.tensor(copies, dtype=torch.int64, device=both_KD.device)

    def shifted(self, x_MD: Tensor) -> Tensor:
        """Rows as their products with `c_KD` are taken."""
        return x_MD - self.centre_D if self.shift else x_MD

    def add_tables(self, scores_MK: Tensor, codes_MJ: Tensor | None) -> None:
        """What makes products with `c_KD` scores, in place; `codes_MJ` are the codes in `books`."""
        if self.tables and codes_MJ is not None:
            if len(self.tables) == 1:
                scores_MK += self.tables[0].index_select(0, codes_MJ[:, 0])
            else:
                stacked, first_J = self.stacked
                scores_MK += embedding_bag(codes_MJ + first_J, stacked, mode="sum")
        else:
            scores_MK += self.bias_K
        if len(self.copies):
            scores_MK[:, self.copies] = -math.inf

    @cached_property
    def stacked(self) -> tuple[Tensor, Tensor]:
        """All tables, one under the other, and the first row of each."""
        if not self.tables:
            return self.bias_K[None], torch.zeros(0, dtype=torch.int64)
        first_J = torch.tensor([0] + [len(table) for table in self.tables[:-1]]).cumsum(0)
        return torch.cat(self.tables), first_J.to(self.bias_K.device)

    def rounding(self, norm_M: Tensor) -> Tensor:
        """How far a float32 score may be off: a sum of D products by D * EPS/2 * ||x|| ||c||."""
        steps = EPS * (self.c_KD.shape[1] + len(self.tables) + 8)
        return 0.5 * steps * (norm_M * self.c_norm + self.table_norm) + 1e-35

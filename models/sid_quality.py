"""How good are semantic IDs, answered without training a ranker (paper section 4).

`quality` takes all measures of one family's IDs. Those of the codes alone are in
`models.sid_usage`, those that need the vectors or the listeners in `models.sid_neighbours`.
Entropies are in nats. A measure that its data leave undefined (one row, constant vectors, a
reference that was not given) is None, so that every result is plain JSON.

Shape suffixes: N rows, D dims, K codes, L levels, P pairs.
"""

from typing import Any

import numpy as np
from torch import Tensor

from models.quantizers import Quantizer
from models.rows import check_rows
from models.sid_neighbours import (
    co_listened_prefix_recall,
    distance_preservation,
    neighbour_recall,
    relative_mse,
)
from models.sid_usage import (
    collisions,
    entropy,
    hourglass,
    prefix_ids,
    shared_information,
    usage,
)

Array = np.ndarray


def quality(
    x_ND: Tensor,
    codes_NL: Tensor,
    book: Quantizer,
    *,
    reference_N: Array | None = None,
    co_listened_P2: Array | None = None,
    pairs: int = 2_000,
    neighbours: int = 10,
    queries: int = 1_000,
    searched: int = 1_000_000,
    seed: int = 0,
) -> dict[str, Any]:
    """All measures of one family's IDs, as plain numbers and lists.

    `x_ND` are the vectors that were quantized. `codes_NL` may have one level more than the book,
    the one that tells apart the members of a group: it counts for the full IDs alone.
    `reference_N` int labels, for instance of genres, negative = unknown. `co_listened_P2` row
    numbers (item, one of its top co-listened items). Distance preservation is measured on `pairs`
    sampled pairs, neighbour recall for `queries` sampled rows among `searched` rows.
    ValueError where the shapes do not fit each other.
    """
    x_ND = check_rows(x_ND)
    allowed = [(len(x_ND), levels) for levels in (book.levels, book.levels + 1)]
    if tuple(codes_NL.shape) not in allowed:
        raise ValueError(f"codes must be {allowed[0]}, got {tuple(codes_NL.shape)}")
    if reference_N is not None and reference_N.shape != (len(x_ND),):
        raise ValueError(f"reference must be {(len(x_ND),)}, got {reference_N.shape}")
    codes = codes_NL.numpy()
    prefix_ids_LN = prefix_ids(codes)
    generator = np.random.default_rng(seed)
    levels = _levels(codes, prefix_ids_LN, book.sizes, reference_N)
    for row, error in zip(levels, relative_mse(x_ND, codes_NL, book), strict=True):
        row["relative_mse"] = error
    return {
        "rows": len(x_ND),
        "levels": levels,
        "full": collisions(prefix_ids_LN[-1]),
        "hourglass": hourglass(levels),
        "distance_preservation": distance_preservation(x_ND, codes_NL, book, pairs, generator),
        "neighbour_recall": neighbour_recall(
            x_ND,
            codes_NL,
            prefix_ids_LN[-1],
            book,
            neighbours=neighbours,
            queries=queries,
            searched=searched,
            generator=generator,
        ),
        "co_listened_prefix_recall": None
        if co_listened_P2 is None
        else co_listened_prefix_recall(prefix_ids_LN, co_listened_P2),
    }


def _levels(
    codes: Array, prefix_ids_LN: list[Array], sizes: tuple[int, ...], reference_N: Array | None
) -> list[dict[str, Any]]:
    """One row of measures a level; collisions are those of the ID up to it."""
    known_N = None if reference_N is None or not (reference_N >= 0).any() else reference_N >= 0
    levels: list[dict[str, Any]] = []
    before = 0.0
    for level, size in enumerate(sizes):
        code_N, id_N = codes[:, level], prefix_ids_LN[level]
        # H(id_l | id_<l) = H(id_1..l) - H(id_1..l-1)
        together = entropy(np.bincount(id_N))
        to_level_1 = shared_information(codes[:, 0], code_N)
        to_reference: dict[str, float] = {}
        if reference_N is not None and known_N is not None:
            to_reference = shared_information(reference_N[known_N], code_N[known_N])
        levels.append(
            {
                "level": level + 1,
                **usage(np.bincount(code_N, minlength=size)),
                **collisions(id_N),
                "conditional_entropy": max(0.0, together - before),
                "nmi_level_1": to_level_1["nmi"],
                "ami_level_1": to_level_1["ami"],
                "nmi_reference": to_reference.get("nmi"),
                "ami_reference": to_reference.get("ami"),
            }
        )
        before = together
    return levels

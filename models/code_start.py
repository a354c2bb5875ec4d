"""Code tables that start from the codebooks' centroids and not at random.

    crescendo train --code-start centroids

The vector of a code is what it adds to the reconstruction, brought to the embedding's width:

    E_l = s C_l V R     V (D, r): the r = min(D, width) directions in which all levels' centroids
                        are longest (PCA about 0);  R (r, width): seeded, orthonormal rows
                        s: so that the entries of all levels have EMBEDDING_STD as root mean square

One linear map a family, so that the sum over levels is the reconstruction, mapped, and inner
products are kept where D <= width. R spreads the directions over the width, for Adam treats each
entry alike. A level that numbers colliding tracks has no centroids: it starts at random, as do
codes that no book holds.

Shape suffixes: K codes, D dims of the quantized vectors, W dims of one PQ slice, L levels.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from models.code_embedding import CodeEmbedding
from models.ranker_config import EMBEDDING_STD, RankerConfig
from models.rankers import build_ranker


def code_table_families(config: RankerConfig) -> dict[str, str]:
    """Name of each code table among the ranker's weights -> the family that it is of."""
    with torch.device("meta"):  # shapes alone: nothing is allocated
        ranker = build_ranker(config)
    return {
        f"{prefix}code_embeddings.{place}.table.weight": config.families[family]
        for name, module in ranker.named_modules()
        if hasattr(module, "code_embeddings")
        for prefix in [f"{name}." if name else ""]
        for place, family in enumerate(module.families)
        if module.code_embeddings[place].table.weight.shape[1] == config.embedding_width
    }


def start_tables(
    config: RankerConfig, books: Mapping[str, Sequence[np.ndarray]], *, seed: int
) -> dict[str, Tensor]:
    """Weights by name: the code tables of `config`'s ranker from the books of its families.

    `books`: what each code of each level adds to the reconstruction, (K, D) a level and one D a
    family (see `slices_in_place`). ValueError for more levels or codes than the ranker has.
    """
    tables = {}
    for name, family in code_table_families(config).items():
        levels = books[family]
        sizes = [len(level_KD) for level_KD in levels]
        if len(levels) > config.levels or max(sizes) > config.codes:
            raise ValueError(
                f"books of {family} must fit {config.levels} levels of {config.codes} codes, "
                f"got {sizes}"
            )
        place = config.families.index(family)
        torch_seed = torch.Generator().manual_seed(seed * len(config.families) + place)
        table = CodeEmbedding(config.levels, config.codes, config.embedding_width).table.weight
        table = table.detach()
        table[:-1].normal_(std=EMBEDDING_STD, generator=torch_seed)
        for level, mapped_KD in enumerate(
            _mapped(levels, config.embedding_width, np.random.default_rng((seed, place)))
        ):
            first = level * config.codes
            table[first : first + len(mapped_KD)] = torch.from_numpy(mapped_KD)
        tables[name] = table
    return tables


def slices_in_place(books: Sequence[np.ndarray]) -> list[np.ndarray]:
    """PQ's levels (K, W), each of its own slice of the dims, as (K, D): zeros in the others'."""
    dims = sum(level_KW.shape[1] for level_KW in books)
    whole, start = [], 0
    for level_KW in books:
        level_KD = np.zeros((len(level_KW), dims), dtype=level_KW.dtype)
        level_KD[:, start : start + level_KW.shape[1]] = level_KW
        start += level_KW.shape[1]
        whole.append(level_KD)
    return whole


def _mapped(
    levels: Sequence[np.ndarray], width: int, random: np.random.Generator
) -> list[np.ndarray]:
    """s C_l V R of every level, (K, width) float32."""
    all_D = np.concatenate(levels).astype(np.float64)
    kept = min(all_D.shape[1], width)
    directions_DD = np.linalg.eigh(all_D.T @ all_D)[1]  # by rising length
    r_WW = np.linalg.qr(random.standard_normal((width, width)))[0]
    map_DW = directions_DD[:, ::-1][:, :kept] @ r_WW[:kept]
    size = np.sqrt(np.square(all_D @ map_DW).mean())
    scale = EMBEDDING_STD / size if size > 0 else 1.0
    return [(level_KD @ map_DW * scale).astype(np.float32) for level_KD in levels]

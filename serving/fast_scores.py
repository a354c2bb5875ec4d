"""The trained ranker's logits for one user and many candidates, from tables made beforehand.

    fast = FastScores.of(model, config, lookup)      # None: a model without target attention
    logits_C = fast.logits(history_L, tracks_C)

A model of target attention (MCCA and its ablations, DIN with or without IDs) is linear in every
embedding up to the first activation, and an ID's embedding is a sum over its codes. So the first
layers of the attention nets and of the tower are multiplied into the code tables once a release
(exact; a table of 3 x 128 codes is a megabyte), the user's side of each is computed once a request,
and the tower's first layer takes the attention weights instead of the interests:

    W h^z = W sum_j s_j e^z_j = sum_j s_j (W e^z_j)

which is one matrix product over all units instead of two a unit.

Shape suffixes: C candidates, L listens, T history positions, Z attention units, H hidden width of
the attention, O width of the tower's first layer, D embedding width, N columns of a projection,
R rows of a table; `...` any leading shape.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from models.attention import TargetAttention
from models.batch import MISSING_CODE, ItemLookup
from models.code_embedding import CodeEmbedding
from models.din import DIN
from models.din_sid import DINWithIDs
from models.mcca import MCCA
from models.numbers import Numbers
from models.ranker_config import RankerConfig
from models.track_embedding import TrackEmbedding

TRACK = -1
"""The source of ID embeddings; the others are families of semantic IDs, by their position."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One target attention: sources whose embeddings, side by side, are its keys and its query."""

    attention: TargetAttention
    keys: tuple[int, ...]
    queries: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which embeddings go where: the tower sees the units' interests, then `targets`."""

    units: tuple[Unit, ...]
    targets: tuple[int, ...]
    tables: dict[int, nn.Module]
    """TrackEmbedding under TRACK, CodeEmbedding under a family."""


def plan(model: nn.Module) -> Plan | None:
    """None for a model without target attention over the whole history."""
    if isinstance(model, MCCA):
        semantic = [
            Unit(attention=cast(TargetAttention, attention), keys=(family,), queries=(query,))
            for (family, query), attention in zip(
                model.queries.items(), model.code_attentions, strict=True
            )
        ]
        of_tracks = Unit(attention=model.track_attention, keys=(TRACK,), queries=(TRACK,))
        tables = dict(zip(model.families, model.code_embeddings, strict=True))
        return Plan(
            units=(*semantic, of_tracks),
            targets=(TRACK, *model.targets),
            tables={TRACK: model.track_embedding, **tables},
        )
    if isinstance(model, DIN):
        unit = Unit(attention=model.attention, keys=(TRACK,), queries=(TRACK,))
        return Plan(units=(unit,), targets=(TRACK,), tables={TRACK: model.track_embedding})
    if isinstance(model, DINWithIDs):
        items = model.items
        sources = (TRACK, *items.families)
        unit = Unit(attention=model.attention, keys=sources, queries=sources)
        tables = dict(zip(items.families, items.code_embeddings, strict=True))
        return Plan(units=(unit,), targets=sources, tables={TRACK: items.track_embedding, **tables})
    return None


class Projection:
    """One source's embeddings times a matrix: of all codes beforehand, of tracks when asked."""

    def __init__(self, source: int, table: nn.Module, weight_ND: Tensor) -> None:
        self.source = source
        self._first_row_L: Tensor | None = None
        if isinstance(table, CodeEmbedding):
            self._first_row_L = table.first_row_L
            self._padding_row = table.padding_row
            self._table_RN = (table.table.weight @ weight_ND.t()).contiguous()
        else:
            assert isinstance(table, TrackEmbedding)
            self._table_RD = table.weight
            self._weight_DN = weight_ND.t().contiguous()

    def __call__(self, id_rows: Tensor, codes_FL: Tensor) -> Tensor:
        """(..., N) of tracks with these embedding rows (...) and codes (..., F, L)."""
        if self._first_row_L is None:
            return self._table_RD[id_rows] @ self._weight_DN
        codes = codes_FL[..., self.source, :]
        rows = torch.where(codes == MISSING_CODE, self._padding_row, codes + self._first_row_L)
        return embedding_bag(rows, self._table_RN, mode="sum")


class FastScores:
    """Logits of one release's model on the CPU. Equal to `model(batch)` up to rounding."""

    def __init__(
        self, model: nn.Module, config: RankerConfig, lookup: ItemLookup, plan: Plan
    ) -> None:
        from serving.attention_kernel import attention_scores  # compiles, or reads its cache

        self._attention_scores = attention_scores
        self._lookup, self._history_length = lookup, config.history_length
        numbers, tower = model.get_submodule("numbers"), model.get_submodule("tower")
        assert isinstance(numbers, Numbers)
        assert isinstance(tower, nn.Sequential)
        self._numbers = numbers
        first, *deeper = tower
        assert isinstance(first, nn.Linear)
        self._after_first = nn.Sequential(*deeper)
        self._bias_O = first.bias
        self._weight_NO: Tensor | None = None
        width, self._hidden = config.embedding_width, config.attention_hidden
        # The tower's columns: one part an embedding, interests first, then targets, then numbers.
        parts = [*(source for unit in plan.units for source in unit.keys), *plan.targets]
        columns = dict(enumerate(first.weight.split(width, dim=1)))
        if numbers.width:
            self._weight_NO = first.weight[:, len(parts) * width :].t().contiguous()
        self._keys: list[list[Projection]] = []
        part = 0
        for unit in plan.units:
            projections = []
            from_key = unit.attention.from_key.weight.split(width, dim=1)
            for source, weight_HD in zip(unit.keys, from_key, strict=True):
                both = torch.cat([weight_HD, columns[part]])
                projections.append(Projection(source, plan.tables[source], both))
                part += 1
            self._keys.append(projections)
        self._key_bias_ZH = torch.stack([unit.attention.from_key.bias for unit in plan.units])
        self._queries: list[tuple[Projection, list[int]]] = []
        """Columns of each: the queries of these units, then the tower's part of the target."""
        for source, column in zip(plan.targets, range(part, len(parts)), strict=True):
            asked = [z for z, unit in enumerate(plan.units) if source in unit.queries]
            weights = [
                plan.units[z].attention.from_query.weight.split(width, dim=1)[
                    plan.units[z].queries.index(source)
                ]
                for z in asked
            ]
            both = torch.cat([*weights, columns[column]])
            self._queries.append((Projection(source, plan.tables[source], both), asked))
        slope_ZH = torch.stack([unit.attention.activation.weight for unit in plan.units])
        weight_ZH = torch.stack([unit.attention.to_weight.weight.squeeze(0) for unit in plan.units])
        self._linear_ZH = (weight_ZH * (1 + slope_ZH) / 2).contiguous().numpy()
        self._absolute_ZH = (weight_ZH * (1 - slope_ZH) / 2).contiguous().numpy()
        self._score_bias_Z1 = torch.stack([unit.attention.to_weight.bias for unit in plan.units])

    @classmethod
    @torch.inference_mode()
    def of(cls, model: nn.Module, config: RankerConfig, lookup: ItemLookup) -> "FastScores | None":
        planned = plan(model)
        return None if planned is None else cls(model, config, lookup, planned)

    @torch.inference_mode()
    def logits(
        self, history_L: np.ndarray, tracks_C: np.ndarray, numbers_CN: Tensor | None = None
    ) -> Tensor:
        """(C,) for candidates `tracks_C` (C at least 1) of a user with these listens,
        newest last; `numbers_CN` as `Batch.numbers_BN`."""
        hidden_CO, queries_CZH = self._candidates(tracks_C)
        newest_T = history_L[-self._history_length :]
        if len(newest_T):
            keys_ZTH, values_TO = self._history(newest_T)
            scores_CZT = np.empty((len(tracks_C), len(keys_ZTH), len(newest_T)), dtype=np.float32)
            self._attention_scores(
                keys_ZTH.numpy(),
                queries_CZH.numpy(),
                self._linear_ZH,
                self._absolute_ZH,
                scores_CZT,
            )
            scores = torch.from_numpy(scores_CZT).add_(self._score_bias_Z1)
            hidden_CO.addmm_(scores.flatten(1), values_TO)
        if self._weight_NO is not None:
            assert numbers_CN is not None
            hidden_CO.addmm_(self._numbers.standardised(numbers_CN), self._weight_NO)
        return self._after_first(hidden_CO).squeeze(-1)

    def _candidates(self, tracks_C: np.ndarray) -> tuple[Tensor, Tensor]:
        """The targets' part of the tower's first layer (C, O), and the queries (C, Z, H)."""
        id_rows_C, codes_CFL = self._lookup(torch.from_numpy(tracks_C))
        hidden_CO = self._bias_O
        queries: list[list[Tensor]] = [[] for _ in self._keys]
        for projection, asked in self._queries:
            *of_units, of_tower = projection(id_rows_C, codes_CFL).split(
                [*(self._hidden for _ in asked), len(self._bias_O)], dim=1
            )
            for z, query_CH in zip(asked, of_units, strict=True):
                queries[z].append(query_CH)
            hidden_CO = hidden_CO + of_tower
        queries_CN = torch.cat([_sum(parts) for parts in queries], dim=1)
        return hidden_CO, queries_CN.view(len(tracks_C), len(self._keys), self._hidden)

    def _history(self, newest_T: np.ndarray) -> tuple[Tensor, Tensor]:
        """Projected keys (Z, T, H), and (Z T, O): what each key adds to the tower's first layer
        when its weight is 1."""
        id_rows_T, codes_TFL = self._lookup(torch.from_numpy(newest_T.copy()))
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for projections, bias_H in zip(self._keys, self._key_bias_ZH, strict=True):
            both_TN = _sum([of(id_rows_T, codes_TFL) for of in projections])
            keys.append(both_TN[:, : self._hidden] + bias_H)
            values.append(both_TN[:, self._hidden :])
        return torch.stack(keys), torch.cat(values)


def _sum(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

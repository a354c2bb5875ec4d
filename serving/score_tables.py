"""A ranker of target attention, multiplied out: what depends on a code alone is a table.

    tables = ScoreTables.of(model, config, lookup)      # None: a model without target attention

A model of target attention (MCCA and its ablations, DIN with or without IDs) is linear in every
embedding up to the first activation, and an ID's embedding is a sum over its codes. So the first
layers of the attention nets and of the tower are multiplied into the code tables once a release
(exact; 3 x 128 codes by 456 columns are 700 KB), the user's side of each is computed once a
request, and the tower's first layer takes the attention weights instead of the interests:

    W h^z = W sum_j s_j e^z_j = sum_j s_j (W e^z_j)

which is one matrix product over all units instead of two a unit. The projection of the ID table,
which may have millions of rows, is a matrix product a request.

PReLU is taken apart, so that what remains inside the loop over listens is an absolute value:

    sum_h w_h PReLU(x_h) = sum_h w_h (1 + a_h) / 2 x_h + w_h (1 - a_h) / 2 |x_h|

(`serving/score_kernel.py` makes it a maximum, which costs an addition less).

Shape suffixes: C candidates, T history positions, I entries (the last one is that of unknown
tracks), L levels, Z attention units, H hidden width of the attention, O width of the tower's first
layer, D embedding width, N columns of a sum, M columns of one source, R rows of a code table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Items:
    """A lookup's tracks, their codes as rows of the code tables."""

    track_ids_I: np.ndarray
    """Rising, without the entry of unknown tracks."""
    id_rows_I: Tensor
    code_rows_FIL: Mapping[int, Tensor]
    """int32, of each family that has a table."""

    @classmethod
    def of(cls, lookup: ItemLookup, tables: Mapping[int, nn.Module]) -> "Items":
        rows = {}
        for family, table in tables.items():
            if isinstance(table, CodeEmbedding):
                codes_IL = lookup.codes_IFL[:, family]
                rows_IL = torch.where(
                    codes_IL == MISSING_CODE, table.padding_row, codes_IL + table.first_row_L
                )
                rows[family] = rows_IL.int().contiguous()
        return cls(
            track_ids_I=lookup.track_ids_I.numpy(), id_rows_I=lookup.id_rows_I, code_rows_FIL=rows
        )

    def entries(self, track_ids_C: np.ndarray) -> np.ndarray:
        """int64 (C,): where each track's rows are; the last entry for unknown ones."""
        unknown = len(self.track_ids_I)
        entries_C = np.minimum(np.searchsorted(self.track_ids_I, track_ids_C), unknown - 1)
        return np.where(self.track_ids_I[entries_C] == track_ids_C, entries_C, unknown)


@dataclass(frozen=True, kw_only=True, eq=False)
class OfTracks:
    """Adds table_RD[id row] @ weight_DM from the column `first` on."""

    first: int
    table_RD: Tensor
    weight_DM: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class OfCodes:
    """Adds the sum over levels of table_RM[code row] from the column `first` on."""

    first: int
    family: int
    table_RM: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """bias + what each source of a track's embeddings adds: (N,) a track."""

    bias_N: Tensor
    sources: tuple[OfTracks | OfCodes, ...]


def _source(source: int, first: int, table: nn.Module, weight_MD: Tensor) -> OfTracks | OfCodes:
    if isinstance(table, CodeEmbedding):
        table_RM = (table.table.weight @ weight_MD.t()).contiguous()
        return OfCodes(first=first, family=source, table_RM=table_RM)
    assert isinstance(table, TrackEmbedding)
    return OfTracks(first=first, table_RD=table.weight, weight_DM=weight_MD.t().contiguous())


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreTables:
    """One release's model and catalogue, on the CPU."""

    items: Items
    history_length: int
    hidden: int
    """H"""
    keys: tuple[Side, ...]
    """Of each unit: projected keys (H), then what a key adds to the tower's first layer (O)."""
    queries: Side
    """The units' queries (Z H), then the targets' part of the tower's first layer (O)."""
    linear_ZH: Tensor
    absolute_ZH: Tensor
    score_bias_Z: Tensor
    numbers: Numbers
    weight_NO: Tensor | None
    """Of the numbers in the tower's first layer; None where the model sees none."""
    after_first: nn.Sequential
    """The tower behind its first layer's sum."""

    @classmethod
    @torch.inference_mode()
    def of(cls, model: nn.Module, config: RankerConfig, lookup: ItemLookup) -> "ScoreTables | None":
        planned = plan(model)
        if planned is None:
            return None
        numbers, tower = model.get_submodule("numbers"), model.get_submodule("tower")
        assert isinstance(numbers, Numbers)
        assert isinstance(tower, nn.Sequential)
        first, *deeper = tower
        assert isinstance(first, nn.Linear)
        width, hidden = config.embedding_width, config.attention_hidden
        # The tower's columns: one part an embedding, interests first, then targets, then numbers.
        of_keys = sum(len(unit.keys) for unit in planned.units)
        columns = first.weight.split(width, dim=1)
        after = of_keys + len(planned.targets)
        slope_ZH = torch.stack([unit.attention.activation.weight for unit in planned.units])
        weight_ZH = torch.cat([unit.attention.to_weight.weight for unit in planned.units])
        return cls(
            items=Items.of(lookup, planned.tables),
            history_length=config.history_length,
            hidden=hidden,
            keys=_key_sides(planned, columns[:of_keys], width),
            queries=_query_side(planned, first.bias, columns[of_keys:after], hidden),
            linear_ZH=(weight_ZH * (1 + slope_ZH) / 2).contiguous(),
            absolute_ZH=(weight_ZH * (1 - slope_ZH) / 2).contiguous(),
            score_bias_Z=torch.cat([unit.attention.to_weight.bias for unit in planned.units]),
            numbers=numbers,
            weight_NO=first.weight[:, after * width :].t().contiguous() if numbers.width else None,
            after_first=nn.Sequential(*deeper),
        )


def _key_sides(plan: Plan, columns: tuple[Tensor, ...], width: int) -> tuple[Side, ...]:
    sides, part = [], 0
    for unit in plan.units:
        sources = []
        from_key = unit.attention.from_key
        for source, weight_HD in zip(unit.keys, from_key.weight.split(width, dim=1), strict=True):
            both_ND = torch.cat([weight_HD, columns[part]])
            sources.append(_source(source, 0, plan.tables[source], both_ND))
            part += 1
        bias_N = torch.cat([from_key.bias, columns[0].new_zeros(len(columns[0]))])
        sides.append(Side(bias_N=bias_N, sources=tuple(sources)))
    return tuple(sides)


def _query_side(plan: Plan, bias_O: Tensor, columns: tuple[Tensor, ...], hidden: int) -> Side:
    """A source that no unit before `first` asks for has no columns there."""
    sources = []
    for source, weight_OD in zip(plan.targets, columns, strict=True):
        asked = [z for z, unit in enumerate(plan.units) if source in unit.queries]
        first = min(asked, default=len(plan.units))
        weights = [weight_OD.new_zeros(hidden, weight_OD.shape[1]) for _ in plan.units]
        for z in asked:
            unit = plan.units[z]
            from_query = unit.attention.from_query.weight.split(weight_OD.shape[1], dim=1)
            weights[z] = from_query[unit.queries.index(source)]
        both_ND = torch.cat([*weights[first:], weight_OD])
        sources.append(_source(source, first * hidden, plan.tables[source], both_ND))
    bias_N = torch.cat([bias_O.new_zeros(len(plan.units) * hidden), bias_O])
    return Side(bias_N=bias_N, sources=tuple(sources))

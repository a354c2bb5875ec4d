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
the attention, O width of the tower's first layer, D embedding width, N columns of a projection.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from models.attention import TargetAttention
from models.batch import ItemLookup
from models.din import DIN
from models.din_sid import DINWithIDs
from models.mcca import MCCA
from models.numbers import Numbers
from models.ranker_config import RankerConfig
from serving.attention_kernel import attention_scores
from serving.projections import TRACK, Items, Side


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


class FastScores:
    """Logits of one release's model on the CPU. Equal to `model(batch)` up to rounding."""

    def __init__(
        self, model: nn.Module, config: RankerConfig, lookup: ItemLookup, plan: Plan
    ) -> None:
        self._items = Items.of(lookup, plan.tables)
        self._history_length = config.history_length
        numbers, tower = model.get_submodule("numbers"), model.get_submodule("tower")
        assert isinstance(numbers, Numbers)
        assert isinstance(tower, nn.Sequential)
        self._numbers = numbers
        first, *deeper = tower
        assert isinstance(first, nn.Linear)
        self._after_first = nn.Sequential(*deeper)
        self._weight_NO: Tensor | None = None
        width, self._hidden = config.embedding_width, config.attention_hidden
        # The tower's columns: one part an embedding, interests first, then targets, then numbers.
        parts = [*(source for unit in plan.units for source in unit.keys), *plan.targets]
        columns = list(first.weight.split(width, dim=1))
        if numbers.width:
            self._weight_NO = first.weight[:, len(parts) * width :].t().contiguous()
        self._keys = self._key_sides(plan, columns, width)
        of_targets = columns[len(parts) - len(plan.targets) : len(parts)]
        self._queries = self._query_side(plan, first.bias, of_targets)
        slope_ZH = torch.stack([unit.attention.activation.weight for unit in plan.units])
        weight_ZH = torch.stack([unit.attention.to_weight.weight.squeeze(0) for unit in plan.units])
        self._linear_ZH = (weight_ZH * (1 + slope_ZH) / 2).contiguous().numpy()
        self._absolute_ZH = (weight_ZH * (1 - slope_ZH) / 2).contiguous().numpy()
        bias_Z1 = torch.stack([unit.attention.to_weight.bias for unit in plan.units])
        self._score_bias_Z = bias_Z1.flatten().numpy()

    @classmethod
    @torch.inference_mode()
    def of(cls, model: nn.Module, config: RankerConfig, lookup: ItemLookup) -> "FastScores | None":
        planned = plan(model)
        return None if planned is None else cls(model, config, lookup, planned)

    def _key_sides(self, plan: Plan, columns: list[Tensor], width: int) -> list[Side]:
        """Of each unit: projected keys (H), then what a key adds to the tower's first layer (O)."""
        sides, part = [], 0
        for unit in plan.units:
            sources = []
            from_key = unit.attention.from_key
            for source, weight_HD in zip(
                unit.keys, from_key.weight.split(width, dim=1), strict=True
            ):
                both_ND = torch.cat([weight_HD, columns[part]])
                sources.append((source, 0, plan.tables[source], both_ND))
                part += 1
            bias_N = torch.cat([from_key.bias, torch.zeros(len(columns[0]))])
            sides.append(Side(bias_N, sources, self._items))
        return sides

    def _query_side(self, plan: Plan, bias_O: Tensor, columns: list[Tensor]) -> Side:
        """The units' queries (Z H), then the targets' part of the tower's first layer (O).

        A source that no unit below `first` asks for has no columns there.
        """
        sources = []
        for source, weight_OD in zip(plan.targets, columns, strict=True):
            asked = [z for z, unit in enumerate(plan.units) if source in unit.queries]
            first = min(asked, default=len(plan.units))
            weights = [weight_OD.new_zeros(self._hidden, weight_OD.shape[1]) for _ in plan.units]
            for z in asked:
                unit = plan.units[z]
                from_query = unit.attention.from_query.weight.split(weight_OD.shape[1], dim=1)
                weights[z] = from_query[unit.queries.index(source)]
            both_ND = torch.cat([*weights[first:], weight_OD])
            sources.append((source, first * self._hidden, plan.tables[source], both_ND))
        bias_N = torch.cat([bias_O.new_zeros(len(plan.units) * self._hidden), bias_O])
        return Side(bias_N, sources, self._items)

    @torch.inference_mode()
    def logits(
        self, history_L: np.ndarray, tracks_C: np.ndarray, numbers_CN: Tensor | None = None
    ) -> Tensor:
        """(C,) for candidates `tracks_C` (C at least 1) of a user with these listens,
        newest last; `numbers_CN` as `Batch.numbers_BN`."""
        units = len(self._keys)
        queries_CN = self._queries(self._items.entries(tracks_C))
        hidden_CO = torch.from_numpy(queries_CN)[:, units * self._hidden :]
        newest_T = history_L[-self._history_length :]
        if len(newest_T):
            entries_T = self._items.entries(newest_T)
            both_ZTN = np.stack([side(entries_T) for side in self._keys])
            scores_CZT = np.empty((len(tracks_C), units, len(newest_T)), dtype=np.float32)
            attention_scores(
                np.ascontiguousarray(both_ZTN[:, :, : self._hidden]),
                queries_CN,
                self._linear_ZH,
                self._absolute_ZH,
                self._score_bias_Z,
                scores_CZT,
            )
            values_UO = torch.from_numpy(both_ZTN).flatten(0, 1)[:, self._hidden :]
            hidden_CO.addmm_(torch.from_numpy(scores_CZT).flatten(1), values_UO)
        if self._weight_NO is not None:
            assert numbers_CN is not None
            hidden_CO.addmm_(self._numbers.standardised(numbers_CN), self._weight_NO)
        return self._after_first(hidden_CO).squeeze(-1)

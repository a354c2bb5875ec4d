"""The trained ranker's logits for one user and many candidates, on a CUDA device.

    scores = CudaScores(ScoreTables.of(model, config, lookup))
    logits_C = scores.logits(history_L, tracks_C)        # on the host

The same sums as `serving/fast_scores.py`. A pass is some thirty small kernels, whose launches would
cost more than they take: it is recorded once for each bucket of candidates, and a request copies
its entries in, replays the record, and copies the logits out. Places beyond the candidates hold
those of an earlier request and are not read; a mask takes out history positions beyond the listens.

Shape suffixes: B places of a bucket, C candidates, T history positions, Z attention units, U = Z T,
H hidden width of the attention, N columns of a sum, O width of the tower's first layer.
"""

import copy
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from serving.score_tables import OfTracks, ScoreTables, Side

BUCKETS = (128, 256, 512, 1024, 2048)
"""Candidates that a record holds. More are scored in several passes of the largest."""
WARM_UPS = 3


@dataclass(kw_only=True, eq=False)
class Record:
    """A captured pass and the tensors that it reads and writes."""

    host: Tensor
    """Pinned: how many listens there are, the history's entries (T), the candidates' (B)."""
    inputs: Tensor
    """The same on the device: one copy a request."""
    numbers_BN: Tensor | None
    logits_B: Tensor
    graph: torch.cuda.CUDAGraph = field(default_factory=torch.cuda.CUDAGraph)


class CudaScores:
    """Logits of one release's model. Equal to `model(batch)` up to rounding (no TF32)."""

    def __init__(self, tables: ScoreTables, device: torch.device | None = None) -> None:
        """Copies the tables to the device and records a pass a bucket: a second or two."""
        from serving.attention_cuda import attention_scores  # Triton comes with torch for CUDA only

        self._attention_scores = attention_scores
        self._device = device or torch.device("cuda")
        self._items = tables.items
        self._tables = _on(tables, self._device)
        self._id_rows_I = tables.items.id_rows_I.to(self._device)
        self._code_rows_FIL: Mapping[int, Tensor] = {
            family: rows_IL.to(self._device)
            for family, rows_IL in tables.items.code_rows_FIL.items()
        }
        self._positions_T = torch.arange(tables.history_length, device=self._device)
        self._lock = threading.Lock()  # a record's tensors serve one pass at a time
        with torch.cuda.device(self._device), torch.inference_mode():
            self._records = {places: self._recorded(places) for places in BUCKETS}

    @torch.inference_mode()
    def logits(
        self, history_L: np.ndarray, tracks_C: np.ndarray, numbers_CN: Tensor | None = None
    ) -> Tensor:
        """As `FastScores.logits`; waits for the device."""
        positions = self._tables.history_length
        newest_T = self._items.entries(history_L[-positions:])
        entries_C = self._items.entries(tracks_C)
        parts = []
        with self._lock:
            for start in range(0, len(entries_C), BUCKETS[-1]):
                part_C = entries_C[start : start + BUCKETS[-1]]
                record = self._records[next(n for n in BUCKETS if n >= len(part_C))]
                host = record.host.numpy()
                host[0] = len(newest_T)
                host[1 : 1 + len(newest_T)] = newest_T
                host[1 + positions : 1 + positions + len(part_C)] = part_C
                record.inputs.copy_(record.host, non_blocking=True)
                if record.numbers_BN is not None:
                    assert numbers_CN is not None
                    numbers_part = numbers_CN[start : start + len(part_C)]
                    record.numbers_BN[: len(part_C)].copy_(numbers_part)
                record.graph.replay()
                parts.append(record.logits_B[: len(part_C)].cpu())
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _recorded(self, places: int) -> Record:
        size = 1 + self._tables.history_length + places
        host = torch.full((size,), len(self._items.track_ids_I), pin_memory=True)
        host[0] = 0
        inputs = host.to(self._device)
        numbers_BN = None
        if self._tables.weight_NO is not None:
            numbers_BN = torch.zeros(places, self._tables.numbers.width, device=self._device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles and loads kernels, which no record may hold
            for _ in range(WARM_UPS):
                self._pass(inputs, numbers_BN)
        torch.cuda.current_stream().wait_stream(stream)
        record = Record(host=host, inputs=inputs, numbers_BN=numbers_BN, logits_B=inputs)
        with torch.cuda.graph(record.graph):
            record.logits_B = self._pass(inputs, numbers_BN)
        return record

    def _pass(self, inputs: Tensor, numbers_BN: Tensor | None) -> Tensor:
        tables = self._tables
        units, positions = len(tables.keys), tables.history_length
        history_T, entries_B = inputs[1 : 1 + positions], inputs[1 + positions :]
        mask_T = (self._positions_T < inputs[0]).float()
        queries_BN = self._sums(tables.queries, entries_B)
        both_ZTN = torch.stack([self._sums(side, history_T) for side in tables.keys])
        scores_BZT = self._attention_scores(
            both_ZTN,
            queries_BN,
            tables.linear_ZH,
            tables.absolute_ZH,
            tables.score_bias_Z,
            mask_T,
        )
        values_UO = both_ZTN[:, :, tables.hidden :].flatten(0, 1)
        hidden_BO = queries_BN[:, units * tables.hidden :].addmm(scores_BZT.flatten(1), values_UO)
        if tables.weight_NO is not None:
            assert numbers_BN is not None
            hidden_BO = hidden_BO.addmm(tables.numbers.standardised(numbers_BN), tables.weight_NO)
        return tables.after_first(hidden_BO).squeeze(-1)

    def _sums(self, side: Side, entries_B: Tensor) -> Tensor:
        """(B, N)."""
        out_BN = side.bias_N.repeat(len(entries_B), 1)
        for source in side.sources:
            if isinstance(source, OfTracks):
                added_BM = source.table_RD[self._id_rows_I[entries_B]] @ source.weight_DM
            else:
                added_BM = source.table_RM[self._code_rows_FIL[source.family][entries_B]].sum(1)
            out_BN[:, source.first : source.first + added_BM.shape[1]] += added_BM
        return out_BN


def _on(tables: ScoreTables, device: torch.device) -> ScoreTables:
    """The same on a device; the items, which a request looks up, stay on the host."""

    def moved(side: Side) -> Side:
        sources = []
        for source in side.sources:
            tensors: dict[str, Any] = {
                name: value.to(device)
                for name, value in vars(source).items()
                if isinstance(value, Tensor)
            }
            sources.append(replace(source, **tensors))
        return Side(bias_N=side.bias_N.to(device), sources=tuple(sources))

    def module(of: nn.Module) -> Any:
        return copy.deepcopy(of).to(device)

    return replace(
        tables,
        keys=tuple(moved(side) for side in tables.keys),
        queries=moved(tables.queries),
        linear_ZH=tables.linear_ZH.to(device),
        absolute_ZH=tables.absolute_ZH.to(device),
        score_bias_Z=tables.score_bias_Z.to(device),
        numbers=module(tables.numbers),
        weight_NO=None if tables.weight_NO is None else tables.weight_NO.to(device),
        after_first=module(tables.after_first),
    )

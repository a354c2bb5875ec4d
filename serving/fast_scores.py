"""The trained ranker's logits for one user and many candidates, on the CPU.

    fast = FastScores(ScoreTables.of(model, config, lookup))
    logits_C = fast.logits(history_L, tracks_C)

`serving/score_tables.py` has the formulas; `serving/cuda_scores.py` does the same on a GPU. What a
candidate adds does not depend on the user: for catalogues up to TABLE_BYTES it is summed up once a
release for every track, and a request only copies its candidates' rows.

Shape suffixes: C candidates, L listens, T history positions, Z attention units, U = Z T, H hidden
width of the attention, Q = Z H, O width of the tower's first layer, N columns of a sum, M of one
source, I entries, R rows of the candidates' sums.
"""

import numpy as np
import torch
from torch import Tensor

from serving.attention_kernel import add_code_rows, attention_scores, negated_columns
from serving.score_tables import OfTracks, ScoreTables, Side

TABLE_BYTES = 256 * 2**20
"""Of the candidates' sums of one release: 140,000 tracks of MCCA (d' = 64). Saves a request a third
of what is left of its pass; a larger catalogue's sums are made at each request."""


class FastScores:
    """Logits of one release's model. Equal to `model(batch)` up to rounding."""

    def __init__(self, tables: ScoreTables) -> None:
        self._tables = tables
        self._code_rows = {f: rows.numpy() for f, rows in tables.items.code_rows_FIL.items()}
        linear_ZH, absolute_ZH = tables.linear_ZH.numpy(), tables.absolute_ZH.numpy()
        # linear = w (1 + a) / 2, absolute = w (1 - a) / 2; the kernel takes w a, w and w (1 - a).
        self._of_key_ZH = linear_ZH - absolute_ZH
        self._of_query_ZH = linear_ZH + absolute_ZH
        self._of_larger_ZH = 2 * absolute_ZH
        entries = len(tables.items.track_ids_I) + 1
        self._queries_IN: np.ndarray | None = None
        if entries * len(tables.queries.bias_N) * 4 <= TABLE_BYTES:
            with torch.inference_mode():
                self._queries_IN = self._sums(tables.queries, np.arange(entries))

    @torch.inference_mode()
    def logits(
        self, history_L: np.ndarray, tracks_C: np.ndarray, numbers_CN: Tensor | None = None
    ) -> Tensor:
        """(C,) for candidates `tracks_C` (C at least 1) of a user with these listens,
        newest last; `numbers_CN` as `Batch.numbers_BN`."""
        tables, units = self._tables, len(self._tables.keys)
        entries_C = tables.items.entries(tracks_C)
        if self._queries_IN is None:
            rows_RN, rows_C = self._sums(tables.queries, entries_C), np.arange(len(entries_C))
        else:
            rows_RN, rows_C = self._queries_IN, entries_C
        of_queries = units * tables.hidden
        hidden_CO = torch.from_numpy(rows_RN[rows_C, of_queries:])
        newest_T = history_L[-tables.history_length :]
        if len(newest_T):
            entries_T = tables.items.entries(newest_T)
            both_ZTN = np.stack([self._sums(side, entries_T) for side in tables.keys])
            negated_QC = np.empty((of_queries, len(rows_C)), dtype=np.float32)
            negated_columns(rows_RN, rows_C, negated_QC)
            scores_ZTC = np.empty((units, len(newest_T), len(tracks_C)), dtype=np.float32)
            attention_scores(
                both_ZTN,
                negated_QC,
                self._of_key_ZH,
                self._of_query_ZH,
                self._of_larger_ZH,
                tables.score_bias_Z.numpy(),
                scores_ZTC,
            )
            values_UO = torch.from_numpy(both_ZTN).flatten(0, 1)[:, tables.hidden :]
            hidden_CO.addmm_(torch.from_numpy(scores_ZTC).flatten(0, 1).t(), values_UO)
        if tables.weight_NO is not None:
            assert numbers_CN is not None
            hidden_CO.addmm_(tables.numbers.standardised(numbers_CN), tables.weight_NO)
        return tables.after_first(hidden_CO).squeeze(-1)

    def _sums(self, side: Side, entries_C: np.ndarray) -> np.ndarray:
        """float32 (C, N)."""
        out_CN = np.empty((len(entries_C), len(side.bias_N)), dtype=np.float32)
        out_CN[:] = side.bias_N.numpy()
        for source in side.sources:
            if isinstance(source, OfTracks):
                rows_C = self._tables.items.id_rows_I[torch.from_numpy(entries_C)]
                columns = slice(source.first, source.first + source.weight_DM.shape[1])
                columns_CM = torch.from_numpy(out_CN)[:, columns]
                columns_CM.addmm_(source.table_RD[rows_C], source.weight_DM)
            else:
                rows_IL, table_RM = self._code_rows[source.family], source.table_RM.numpy()
                add_code_rows(entries_C, rows_IL, table_RM, source.first, out_CN)
        return out_CN

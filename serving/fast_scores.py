"""The trained ranker's logits for one user and many candidates, on the CPU.

    fast = FastScores(ScoreTables.of(model, config, lookup))
    logits_C = fast.logits(history_L, tracks_C)

`serving/score_tables.py` has the formulas, `serving/score_kernel.py` and `table_rows.py` the loops;
`serving/cuda_scores.py` does the same on a GPU. What a candidate adds does not depend on the user:
for catalogues up to TABLE_BYTES it is summed up once a release for every track, and a request only
copies its candidates' rows.

Shape suffixes: C candidates, L listens, T history positions, Z attention units, H hidden width of
the attention, O width of the tower's first layer, N columns of a sum, M of one source, X numbers, S
sources of codes, I entries, R rows of a table, D width of an embedding.
"""

from collections.abc import Iterable
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from serving.score_kernel import LINE, logits, workspace_size
from serving.score_tables import OfCodes, OfTracks, ScoreTables, Side
from serving.table_rows import add_code_rows, key_rows

TABLE_BYTES = 256 * 2**20
"""Of the candidates' sums of one release: 140,000 tracks of MCCA (d' = 64). Saves a request a third
of what is left of its pass; a larger catalogue's sums are made at each request."""


class FastScores:
    """Logits of one release's model. Equal to `model(batch)` up to rounding.

    Any thread may ask.
    """

    def __init__(self, tables: ScoreTables) -> None:
        self._tables = tables
        self._code_rows = {f: rows.numpy() for f, rows in tables.items.code_rows_FIL.items()}
        self._keys = _Keys(tables)
        linear_ZH, absolute_ZH = tables.linear_ZH.numpy(), tables.absolute_ZH.numpy()
        # linear = w (1 + a) / 2, absolute = w (1 - a) / 2; the kernel takes w a, w and w (1 - a).
        self._attention = (
            linear_ZH - absolute_ZH,
            linear_ZH + absolute_ZH,
            2 * absolute_ZH,
            tables.score_bias_Z.numpy(),
        )
        outputs = len(tables.queries.bias_N) - tables.linear_ZH.numel()
        weight_NO = tables.weight_NO
        self._weight_XO = (
            np.zeros((0, outputs), np.float32) if weight_NO is None else weight_NO.numpy()
        )
        self._tower = _flattened(outputs, tables.after_first)
        self._spaces: list[np.ndarray] = []
        """Of the kernel, none of them in use."""
        self._space = workspace_size(
            len(tables.queries.bias_N),
            len(tables.keys) * tables.history_length,
            len(self._weight_XO),
            int(self._tower[0].max()),
        )
        entries = len(tables.items.track_ids_I) + 1
        self._queries_IN: np.ndarray | None = None
        if entries * len(tables.queries.bias_N) * 4 <= TABLE_BYTES:
            with torch.inference_mode():
                self._queries_IN = self._sums(tables.queries, np.arange(entries))

    def logits(
        self, history_L: np.ndarray, tracks_C: np.ndarray, numbers_CN: Tensor | None = None
    ) -> Tensor:
        """(C,) for candidates `tracks_C` (C at least 1) of a user with these listens,
        newest last; `numbers_CN` as `Batch.numbers_BN`."""
        tables = self._tables
        entries_C = tables.items.entries(tracks_C)
        if self._queries_IN is None:
            with torch.inference_mode():
                rows_RN, rows_C = self._sums(tables.queries, entries_C), np.arange(len(entries_C))
        else:
            rows_RN, rows_C = self._queries_IN, entries_C
        if tables.weight_NO is None:
            numbers_CX = np.empty((len(rows_C), 0), dtype=np.float32)
        else:
            assert numbers_CN is not None
            with torch.inference_mode():
                numbers_CX = tables.numbers.standardised(numbers_CN).numpy()
        keys_ZTN = self._keys.rows(tables.items.entries(history_L[-tables.history_length :]))
        logits_C = np.empty(len(rows_C), dtype=np.float32)
        try:
            space = self._spaces.pop()
        except IndexError:
            space = _aligned(self._space)
        logits(
            rows_RN,
            rows_C,
            keys_ZTN,
            *self._attention,
            self._weight_XO,
            numbers_CX,
            *self._tower,
            space,
            logits_C,
        )
        self._spaces.append(space)
        return torch.from_numpy(logits_C)

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


class _Keys:
    """The keys' sides of all units, as one call of the kernel takes them.

    Every source of a key has all columns; the ID embeddings are a source of one unit.
    """

    def __init__(self, tables: ScoreTables) -> None:
        sources = [(z, source) for z, side in enumerate(tables.keys) for source in side.sources]
        ((unit, tracks),) = [(z, one) for z, one in sources if isinstance(one, OfTracks)]
        of_codes = [(z, one) for z, one in sources if isinstance(one, OfCodes)]
        self._bias_ZN = torch.stack([side.bias_N for side in tables.keys]).numpy()
        columns, rows_FIL = self._bias_ZN.shape[1], tables.items.code_rows_FIL
        rows_SIL, tables_SRN = np.zeros((0, 0, 0), np.int32), np.zeros((0, 0, columns), np.float32)
        if of_codes:
            rows_SIL = torch.stack([rows_FIL[one.family] for _, one in of_codes]).numpy()
            tables_SRN = torch.stack([one.table_RM for _, one in of_codes]).numpy()
        self._arguments = (
            self._bias_ZN,
            rows_SIL,
            tables_SRN,
            np.array([z for z, _ in of_codes], dtype=np.int64),
            tables.items.id_rows_I.numpy(),
            tracks.table_RD.detach().numpy(),
            tracks.weight_DM.numpy(),
            unit,
        )

    def rows(self, entries_T: np.ndarray) -> np.ndarray:
        """float32 (Z, T, N)."""
        units, columns = self._bias_ZN.shape
        out_ZTN = np.empty((units, len(entries_T), columns), dtype=np.float32)
        key_rows(entries_T, *self._arguments, out_ZTN)
        return out_ZTN


def _flattened(
    outputs: int, after_first: nn.Sequential
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Widths of the tower's layers, then slopes, weights and biases as the kernel takes them."""
    modules = list(after_first)
    activations = cast(list[nn.PReLU], modules[::2])
    layers = cast(list[nn.Linear], modules[1::2])

    def flat(parts: Iterable[Tensor]) -> np.ndarray:
        return torch.cat([part.detach().flatten() for part in parts]).numpy()

    return (
        np.array([outputs, *(layer.out_features for layer in layers)]),
        flat(activation.weight for activation in activations),
        flat(layer.weight.t() for layer in layers),
        flat(layer.bias for layer in layers),
    )


def _aligned(size: int) -> np.ndarray:
    """float32, from the beginning of a cache line: a vector read across two takes twice as long."""
    room = np.empty(size + LINE, dtype=np.float32)
    skipped = -room.ctypes.data // room.itemsize % LINE
    return room[skipped : skipped + size]

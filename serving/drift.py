"""Drift watch of one release: are served scores and IDs still like those of its training?

    watch = DriftWatch(Baseline.read(folder, config), config.families)   when a release is loaded
    watch.served(items, track_ids, scores, history_L)                    after each answer
    watch.score_psi(), watch.code_psi()                                  when Prometheus asks

A baseline is what the model saw and answered on its test part: impressions. What callers let rank
is another choice of tracks, so an index has a level of its own from the first day on; what tells is
its change. Histories have no such difference.

Shape suffixes: C candidates, L listens of one user, F families, K codes, S score bins.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file

from feature_repo.errors import ArtifactError
from models.ranker_config import RankerConfig
from models.stability import BASELINE_FILE, SCORE_BINS, code_counts, score_counts, stability_index

if TYPE_CHECKING:
    from models.batch import ItemTable

COUNTED_EVERY = 64
"""One answer in so many is counted, the first one too: 500 tracks cost up to 400 us to look up."""
WINDOW_ANSWERS = 1_000
"""An index is that of the newest counted answers, so many to twice as many."""
LEAST_ANSWERS = 50
"""Fewer say nothing: candidates of one request are alike."""
ROWS_A_CODE = 20
"""Least rows for each code of a book. With K codes and n rows chance alone gives K / n: 0.05."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Baseline:
    """What training counted (`ray_jobs/drift_baseline.py`)."""

    score_counts: np.ndarray
    """(S,) int64."""
    candidate_codes: np.ndarray
    """(F, K + 1) int64: first-level codes, in column 0 tracks without one."""
    history_codes: np.ndarray
    """The same of the listens that the rows look back on."""

    @classmethod
    def read(cls, model_folder: Path, config: RankerConfig) -> "Baseline":
        """ArtifactError where the file is missing or of other sizes than the model."""
        path = model_folder / BASELINE_FILE
        if not path.exists():
            raise ArtifactError(
                f"{path} is missing: the model is of an older version; `crescendo train` writes it"
            )
        baseline = cls(**load_file(path))
        of_codes = (len(config.families), config.codes + 1)
        expected = {
            "score_counts": (SCORE_BINS,),
            "candidate_codes": of_codes,
            "history_codes": of_codes,
        }
        for name, shape in expected.items():
            found = getattr(baseline, name).shape
            if found != shape:
                raise ArtifactError(
                    f"{path}: {name} is {found}, the model's is {shape}; run `crescendo train`"
                )
        return baseline


class _Window:
    """Counts of the newest answers: those of a full half stay until the next half is full."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.total = np.zeros(shape, dtype=np.int64)
        """Since the release was loaded."""
        self._settled = np.zeros(shape, dtype=np.int64)  # of the total: when this half began
        self._dropped = np.zeros(shape, dtype=np.int64)  # of the total: when the half before began

    def turn(self) -> None:
        self._dropped = self._settled
        self._settled = self.total.copy()

    @property
    def counts(self) -> np.ndarray:
        return self.total - self._dropped


class DriftWatch:
    """Counts what one release serves. One thread records; any thread reads."""

    def __init__(self, baseline: Baseline, families: Sequence[str]) -> None:
        self._baseline, self._families = baseline, families
        self._codes = baseline.candidate_codes.shape[1] - 1
        self._scores = _Window(baseline.score_counts.shape)
        self._candidates = _Window(baseline.candidate_codes.shape)
        self._history = _Window(baseline.history_codes.shape)
        self._answers = 0
        self.counted = 0
        """Answers since the release was loaded; so of `score_totals` and `score_sum`."""
        self.score_sum = 0.0

    @property
    def score_totals(self) -> np.ndarray:
        """(S,) int64: scores in each bin."""
        return self._scores.total

    def served(
        self,
        items: "ItemTable",
        track_ids: Sequence[int],
        scores: Sequence[float | None],
        history_L: np.ndarray,
    ) -> None:
        """Counts an answer, if it is its turn: ranked tracks, their scores, the user's listens.

        `items` is the table that was ranked with: it grows while a release lives.
        """
        self._answers += 1
        if (self._answers - 1) % COUNTED_EVERY:
            return
        scores_C = np.array([score for score in scores if score is not None], dtype=np.float64)
        self._scores.total += score_counts(scores_C)
        self.score_sum += float(scores_C.sum())
        if len(items.track_ids_I):
            self._candidates.total += self._counts(items, np.array(track_ids, dtype=np.int64))
            self._history.total += self._counts(items, history_L)
        self.counted += 1
        if self.counted % WINDOW_ANSWERS == 0:
            for window in (self._scores, self._candidates, self._history):
                window.turn()

    def score_psi(self) -> float | None:
        """PSI of served scores; None while there are too few."""
        if self.counted < LEAST_ANSWERS:
            return None
        return stability_index(self._baseline.score_counts, self._scores.counts)

    def code_psi(self) -> Iterator[tuple[str, str, float]]:
        """Family, `candidates` or `history`, and PSI of the first code; those with enough rows."""
        if self.counted < LEAST_ANSWERS:
            return
        for side, window, trained in (
            ("candidates", self._candidates, self._baseline.candidate_codes),
            ("history", self._history, self._baseline.history_codes),
        ):
            served = window.counts
            for family, trained_K, served_K in zip(self._families, trained, served, strict=True):
                if min(trained_K.sum(), served_K.sum()) >= ROWS_A_CODE * self._codes:
                    yield family, side, stability_index(trained_K, served_K)

    def _counts(self, items: "ItemTable", track_ids: np.ndarray) -> np.ndarray:
        return code_counts(items.codes(track_ids)[..., 0], self._codes)

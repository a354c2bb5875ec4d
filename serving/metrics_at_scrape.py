"""Metrics that are worked out when Prometheus asks: releases, scores, drift, shadow, freshness.

`ServingMetrics` registers this beside what it counts, and tells it what it works from. A scrape
costs some milliseconds of a thread.

Shape suffix: S score bins.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from models.stability import SCORE_BINS
from serving.drift import COUNTED_EVERY, DriftWatch

if TYPE_CHECKING:
    from serving.ranker import ReleaseRanker


class AtScrape(Collector):
    """What is worked out when it is asked for, and what it is worked out from."""

    def __init__(self) -> None:
        self.release_status: Callable[[], Mapping[str, Any]] | None = None
        """`LiveReleases.status`, once the process has releases."""
        self.watches: WeakKeyDictionary[ReleaseRanker, DriftWatch | None] = WeakKeyDictionary()
        """The loaded releases; a release goes when nobody holds its ranker any more."""
        self.newest_listen_us = 0
        """The newest listen that any row has shown, microseconds since 1970; 0: none yet."""

    def collect(self) -> Iterator[Metric]:
        yield from self._of_rows()
        if self.release_status is not None:
            yield from self._of_releases(self.release_status())
        yield from self._of_drift()

    def _of_rows(self) -> Iterator[Metric]:
        newest = GaugeMetricFamily(
            "crescendo_newest_listen_age_seconds",
            "Now less the newest listen that any user's row has shown: rises when rows stand still",
        )
        if newest_us := self.newest_listen_us:
            newest.add_metric([], time.time() - newest_us / 1e6)
        yield newest

    def _of_releases(self, status: Mapping[str, Any]) -> Iterator[Metric]:
        """Of `LiveReleases.status`."""
        info = GaugeMetricFamily(
            "crescendo_release_info",
            "1 for each release that serves here, and where: live, canary, shadow",
            labels=["slot", "release_id", "model_id", "generation_id"],
        )
        loaded = {ranker.release.release_id: ranker.release for ranker in list(self.watches)}
        places = {
            slot: status[slot] and status[slot]["release_id"] for slot in ("canary", "shadow")
        }
        for slot, release_id in {"live": status["live"], **places}.items():
            if (release := loaded.get(release_id)) is not None:
                info.add_metric([slot, release_id, release.model_id, release.generation_id], 1)
        yield info
        yield CounterMetricFamily(
            "crescendo_release_loads", "Releases loaded since the start", value=status["loads"]
        )
        yield CounterMetricFamily(
            "crescendo_release_load_failures",
            "Releases that could not be loaded, or did not give their recorded scores",
            value=status["failed_loads"],
        )
        yield GaugeMetricFamily(
            "crescendo_release_problem",
            "1 while a release that is named is not the one that serves",
            value=status["last_problem"] is not None,
        )
        yield from _of_shadow(status["shadow"])

    def _of_drift(self) -> Iterator[Metric]:
        scores = HistogramMetricFamily(
            "crescendo_scores",
            f"Scores of one answer in {COUNTED_EVERY}",
            labels=["release_id"],
        )
        score_psi = GaugeMetricFamily(
            "crescendo_score_drift_psi",
            "Population stability index of served scores against the model's test part",
            labels=["release_id"],
        )
        code_psi = GaugeMetricFamily(
            "crescendo_code_drift_psi",
            "The same of first-level codes: of candidates, and of the users' listens",
            labels=["release_id", "family", "side"],
        )
        for ranker, watch in list(self.watches.items()):
            if watch is None:
                continue
            release_id = ranker.release.release_id
            scores.add_metric([release_id], _buckets(watch.score_totals), watch.score_sum)
            if (psi := watch.score_psi()) is not None:
                score_psi.add_metric([release_id], psi)
            for family, side, psi in watch.code_psi():
                code_psi.add_metric([release_id, family, side], psi)
        yield from (scores, score_psi, code_psi)


def _of_shadow(comparison: Mapping[str, Any] | None) -> Iterator[Metric]:
    """Of `ShadowScorer.summary`, where a shadow runs."""
    figures = {
        "mean_difference": "Mean absolute difference of scores, live and shadow",
        "top_overlap": "Share of the live top ten that is in the shadow's",
        "rank_agreement": "Kendall's tau of live and shadow",
    }
    counts = {
        "rankings": "Rankings that were compared with the shadow's",
        "skipped": "Rankings that were not compared, to keep up with those that count",
        "failed": "Rankings that the shadow could not score",
    }
    for name, text in figures.items():
        gauge = GaugeMetricFamily(f"crescendo_shadow_{name}", text)
        if comparison is not None and comparison[name] is not None:
            gauge.add_metric([], comparison[name])
        yield gauge
    for name, text in counts.items():
        counter = CounterMetricFamily(f"crescendo_shadow_{name}", text)
        if comparison is not None:
            counter.add_metric([], comparison[name])
        yield counter


def _buckets(counts_S: np.ndarray) -> list[tuple[str, float]]:
    """Prometheus's cumulative buckets; the last one has no bound."""
    sums = np.cumsum(counts_S).tolist()
    edges = [f"{edge / SCORE_BINS:g}" for edge in range(1, SCORE_BINS)]
    return list(zip([*edges, "+Inf"], sums, strict=True))

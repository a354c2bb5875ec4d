"""Metrics: what is recorded is what is scraped; cheap; a release is forgotten with its ranker."""

import asyncio
import gc
import os
import time
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from safetensors.numpy import save_file

from models.stability import BASELINE_FILE, code_counts, score_counts
from serving.deployment import load_app
from serving.drift import COUNTED_EVERY, LEAST_ANSWERS
from serving.live_releases import LiveReleases
from serving.metrics import (
    DEGRADATIONS,
    EVENTS,
    REJECTIONS,
    ROUTES,
    ServingMetrics,
    metrics_router,
)
from serving.ranker import ReleaseRanker
from serving.releases import live_release, make_release
from serving.schemas import Degradation
from tests.serving.release_world import release_world

NOW_US = 1_700_000_000_000_000


def scraped(metrics):
    """Every sample of a scrape over HTTP: {(name, labels): value}."""
    app = FastAPI()
    app.include_router(metrics_router(metrics))
    answer = TestClient(app).get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples, name, **labels):
    return samples[name, tuple(sorted(labels.items()))]


def answered(metrics, route="rank", **changes):
    facts = {
        "queue_s": 0.0004,
        "read_s": 0.0011,
        "score_s": 0.002,
        "total_s": 0.004,
        "candidates": 500,
        "unknown_candidates": 0,
        "newest_listen_us": NOW_US,
    }
    metrics.answered(route, **{**facts, **changes})


def test_everything_that_may_happen_is_there_before_it_happens():
    samples = scraped(ServingMetrics())
    for route in ROUTES:
        for outcome in ("full", "degraded"):
            assert value(samples, "crescendo_answers_total", route=route, outcome=outcome) == 0
    for reason in DEGRADATIONS:
        assert value(samples, "crescendo_degradations_total", reason=reason) == 0
    for reason in REJECTIONS:
        assert value(samples, "crescendo_rejections_total", reason=reason) == 0
    assert value(samples, "crescendo_failures_total") == 0
    assert ("crescendo_newest_listen_age_seconds", ()) not in samples


def test_degradations_are_those_of_the_answers():
    assert set(DEGRADATIONS) == set(Degradation.__args__)


def test_an_answer_is_counted_with_its_stages():
    metrics = ServingMetrics()
    answered(metrics)
    answered(metrics, total_s=0.02, unknown_candidates=3)
    answered(metrics, "recommend", degraded=["user_stale", "popularity"])
    samples = scraped(metrics)

    def stage(name):
        return value(samples, "crescendo_request_seconds_sum", stage=name)

    assert stage("total") == pytest.approx(0.028)
    assert stage("queue") == pytest.approx(3 * 0.0004)
    assert stage("read") == pytest.approx(3 * 0.0011)
    assert stage("score") == pytest.approx(3 * 0.002)
    parts = sum(map(stage, ("queue", "read", "score", "answer")))
    assert parts == pytest.approx(stage("total"))
    within = {
        limit: value(samples, "crescendo_request_seconds_bucket", stage="total", le=limit)
        for limit in ("0.003", "0.005", "0.02", "+Inf")
    }
    assert within == {"0.003": 0, "0.005": 2, "0.02": 3, "+Inf": 3}
    assert value(samples, "crescendo_answers_total", route="rank", outcome="full") == 2
    assert value(samples, "crescendo_answers_total", route="recommend", outcome="degraded") == 1
    for reason in DEGRADATIONS:
        counted = value(samples, "crescendo_degradations_total", reason=reason)
        assert counted == (reason in ("user_stale", "popularity"))
    assert value(samples, "crescendo_unknown_candidates_total") == 3
    assert value(samples, "crescendo_candidates_sum") == 1500


def test_rows_without_listens_are_told_from_rows_that_were_not_read_or_not_wanted():
    metrics = ServingMetrics()
    answered(metrics, newest_listen_us=0)
    answered(metrics, newest_listen_us=0, degraded=["user_unavailable"])
    answered(metrics, "recommend", newest_listen_us=None)
    samples = scraped(metrics)
    assert value(samples, "crescendo_unknown_users_total") == 1
    assert value(samples, "crescendo_user_row_age_seconds_count") == 0


def test_the_newest_listen_of_all_rows_ages():
    metrics = ServingMetrics()
    now_us = time.time_ns() // 1000
    for age_s in (500, 90, 4000):
        answered(metrics, newest_listen_us=now_us - age_s * 1_000_000)
    answered(metrics, newest_listen_us=now_us + 10**9)  # a log may run ahead of the clock
    samples = scraped(metrics)
    assert value(samples, "crescendo_newest_listen_age_seconds") == pytest.approx(-1000, abs=60)
    bucket = "crescendo_user_row_age_seconds_bucket"
    counts = {le: value(samples, bucket, le=f"{le:.1f}") for le in (1, 60, 600, 21600)}
    assert counts == {1: 1, 60: 1, 600: 3, 21600: 4}


def test_rejections_and_failures_are_counted():
    metrics = ServingMetrics()
    for reason in ("rate", "rate", "body"):
        metrics.rejected(reason)
    metrics.failed()
    samples = scraped(metrics)
    counts = {
        reason: value(samples, "crescendo_rejections_total", reason=reason) for reason in REJECTIONS
    }
    assert counts == {reason: {"rate": 2, "body": 1}.get(reason, 0) for reason in REJECTIONS}
    assert value(samples, "crescendo_failures_total") == 1


def test_events_are_counted_by_what_became_of_them():
    metrics = ServingMetrics()
    metrics.took_events("accepted", 3)
    metrics.took_events("accepted", 0)
    metrics.took_events("refused", 2)
    samples = scraped(metrics)
    counts = {status: value(samples, "crescendo_events_total", status=status) for status in EVENTS}
    assert counts == {"accepted": 3, "pending": 0, "rejected": 0, "refused": 2}


def test_a_reason_that_nobody_declared_is_an_error():
    with pytest.raises(KeyError):
        ServingMetrics().rejected("mood")


def test_the_lag_of_a_busy_event_loop_is_seen():
    metrics = ServingMetrics()

    async def busy():
        watching = asyncio.create_task(metrics.watch_loop())
        await asyncio.sleep(0)
        began = time.perf_counter()
        while time.perf_counter() - began < 0.4:  # the loop's timer was due after 0.25 s
            pass
        await asyncio.sleep(0.05)
        watching.cancel()

    asyncio.run(busy())
    samples = scraped(metrics)
    assert value(samples, "crescendo_event_loop_lag_seconds_count") == 1
    assert value(samples, "crescendo_event_loop_lag_seconds_sum") > 0.1


# --- releases and drift ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return release_world(tmp_path_factory.mktemp("metrics") / "workspace")


def write_baseline(workspace, ranker):
    """As if the model had been tested on impressions of all tracks, with scores around 0.9."""
    random = np.random.default_rng(0)
    codes = ranker.items.codes(random.choice(ranker.items.track_ids_I, 5000))[..., 0]
    counts = code_counts(codes, ranker.config.codes)
    arrays = {
        "score_counts": score_counts(random.beta(90, 10, 5000)),
        "candidate_codes": counts,
        "history_codes": counts,
    }
    save_file(arrays, Path(workspace.models) / ranker.release.model_id / BASELINE_FILE)


def test_releases_scores_and_planted_drift(world):
    workspace = world.workspace
    make_release(workspace, world.old)
    metrics = ServingMetrics()
    depth = [7]

    def load(release):
        ranker = ReleaseRanker(workspace, release)
        write_baseline(workspace, ranker)
        metrics.loaded(ranker)
        return ranker

    releases = LiveReleases(workspace, load, poll_s=0.02)
    releases.start()
    try:
        metrics.follows(releases.status, lambda: depth[0])
        first = live_release(workspace)
        ranker = releases.current
        scores = np.random.default_rng(1).beta(10, 90, 60)  # where the model's were around 0.9
        tracks, history_L = ranker.items.track_ids_I[:60], ranker.items.track_ids_I
        for _ in range(LEAST_ANSWERS * COUNTED_EVERY):
            metrics.served(ranker, tracks.tolist(), scores.tolist(), history_L)
        samples = scraped(metrics)
        assert value(samples, "crescendo_queue_depth") == 7
        assert (
            value(
                samples,
                "crescendo_release_info",
                slot="live",
                release_id=first.release_id,
                model_id=first.model_id,
                generation_id=first.generation_id,
            )
            == 1
        )
        assert value(samples, "crescendo_release_loads_total") == 1
        assert value(samples, "crescendo_release_problem") == 0
        assert value(samples, "crescendo_score_drift_psi", release_id=first.release_id) > 1
        for family in ranker.config.families:
            labels = {"release_id": first.release_id, "family": family}
            assert value(samples, "crescendo_code_drift_psi", **labels, side="history") < 0.1
        histogram = {
            le: value(samples, "crescendo_scores_bucket", release_id=first.release_id, le=le)
            for le in ("0.05", "0.1", "0.5", "+Inf")
        }
        expected = [LEAST_ANSWERS * int((scores < limit).sum()) for limit in (0.05, 0.1, 0.5, 2)]
        assert list(histogram.values()) == expected

        del ranker
        make_release(workspace, world.new)
        until(lambda: releases.current.release.model_id == world.new)
        (workspace.releases / "new").write_text("release-of-nobody\n")
        os.replace(workspace.releases / "new", workspace.releases / "CURRENT")
        until(lambda: releases.status()["failed_loads"] == 1)
        gc.collect()
        samples = scraped(metrics)
        names = {dict(labels).get("release_id") for _, labels in samples} - {None}
        assert names == {releases.status()["live"]} != {first.release_id}
        assert value(samples, "crescendo_release_loads_total") == 2
        assert value(samples, "crescendo_release_load_failures_total") == 1
        assert value(samples, "crescendo_release_problem") == 1
    finally:
        releases.stop()


def until(true, seconds=30):
    """Waits for what another thread does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_a_model_without_a_baseline_is_served_without_drift_gauges(world, capsys):
    make_release(world.workspace, world.plain)
    ranker = ReleaseRanker(world.workspace, live_release(world.workspace))
    metrics = ServingMetrics()
    metrics.loaded(ranker)
    metrics.served(ranker, [1, 2], [0.5, 0.5], np.array([1]))
    assert not any(name.startswith("crescendo_scores") for name, _ in scraped(metrics))
    assert "drift_baseline.safetensors is missing" in capsys.readouterr().out


def test_the_application_records_its_requests(world):
    make_release(world.workspace, world.new)
    with TestClient(load_app(world.workspace)) as client:
        ranked = client.post("/v1/rank", json={"user_id": 1, "candidates": [1, 2, 3, 777]})
        assert ranked.status_code == 200, ranked.text
        client.post("/v1/rank", json={"user_id": -5, "candidates": [1]})
        client.post("/v1/recommend", json={"history": [1, 2], "count": 3})
        text = client.get("/metrics").text
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }

    def count(name, **labels):
        return value(samples, name, **labels)

    answers = sum(
        count("crescendo_answers_total", route="rank", outcome=outcome)
        for outcome in ("full", "degraded")
    )
    assert answers == 2
    assert count("crescendo_unknown_candidates_total") == 1
    assert count("crescendo_unknown_users_total") == 1
    assert count("crescendo_request_seconds_count", stage="total") == 3
    assert count("crescendo_request_seconds_sum", stage="score") > 0
    assert count("crescendo_queue_depth") == 0
    release = live_release(world.workspace)
    labels = {name: getattr(release, name) for name in ("release_id", "model_id", "generation_id")}
    assert count("crescendo_release_info", slot="live", **labels) == 1

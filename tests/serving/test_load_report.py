"""The load test's statistics: percentiles with bounds, and verdicts against objectives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from feature_repo.errors import InputError
from serving.load_report import Objective, judge, overall, percentile, requests_needed


@pytest.mark.parametrize("text", ["p98=3", "p99", "p99=", "p99=0", "p99=nan", "p99=-1", "99=3"])
def test_a_bad_objective_is_named(text):
    with pytest.raises(InputError, match=r"objective must be one of p50, p95, p99, p99\.9, ="):
        Objective.parse(text)


def test_requests_needed_are_those_that_mlperf_publishes():
    # Its rules' table of queries: 24,576 for p90, 57,344 for p95, 270,336 for p99.
    assert [requests_needed(p) for p in (90, 95, 99)] == [24_576, 57_344, 270_336]


def test_a_percentile_is_stated_from_enough_requests_only():
    ascending = np.arange(1.0, 270_337)
    assert percentile(ascending, 99).ms == np.percentile(ascending, 99, method="inverted_cdf")
    assert percentile(ascending[:-1], 99).ms is None


@pytest.mark.parametrize("percent", [50.0, 99.0])
def test_bounds_hold_as_often_as_they_say(percent):
    random = np.random.default_rng(0)
    true = -np.log(1 - percent / 100)  # of the exponential distribution
    below, above = 0, 0
    for _ in range(2000):
        found = percentile(np.sort(random.exponential(size=700)), percent)
        above += found.at_most_ms >= true
        below += found.at_least_ms <= true
    # 99% of 2,000, less four standard deviations; and not bounds that always hold.
    assert 1962 <= above < 2000
    assert 1962 <= below < 2000


def test_459_requests_are_the_fewest_that_bound_p99():
    # All of n lie below the true p99 with probability .99^n: under 1% from 459 on.
    assert 0.99**459 < 0.01 < 0.99**458
    assert percentile(np.ones(459), 99).at_most_ms == 1
    assert percentile(np.ones(458), 99).at_most_ms is None


@settings(deadline=None)
@given(st.integers(1, 20_000), st.sampled_from([50.0, 95.0, 99.0, 99.9]))
def test_bounds_are_the_order_statistics_of_the_binomial(count, percent):
    found = percentile(np.arange(1.0, count + 1), percent)
    above = binom.ppf(0.99, count, percent / 100) + 1
    below = binom.ppf(0.01, count, percent / 100)
    assert found.at_most_ms == (above if above <= count else None)
    assert found.at_least_ms == (below if below >= 1 else None)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([1.0, 30.0, np.inf]), min_size=1, max_size=40),
    st.sampled_from([50.0, 95.0, 99.0, 99.9]),
)
def test_a_verdict_agrees_with_the_bounds(latencies, percent):
    found = percentile(np.sort(latencies), percent)
    (judged,) = judge(np.array(latencies), [Objective(percent=percent, limit_ms=20.0)])
    if judged.verdict == "met":
        assert found.at_most_ms is not None
        assert found.at_most_ms <= 20
    elif judged.verdict == "missed":
        assert found.at_least_ms is None or found.at_least_ms > 20
    else:
        assert found.at_most_ms is None or found.at_most_ms > 20


def test_errors_are_answers_that_came_too_late():
    latencies = np.append(np.ones(9_700), np.full(300, np.inf))
    objectives = [Objective.parse("p50=5"), Objective.parse("p99=60000")]
    judged = judge(latencies, objectives)
    assert [one.verdict for one in judged] == ["met", "missed"]
    assert overall(judged) == "missed"
    assert overall(judged[:1]) == "met"
    assert overall([]) is None

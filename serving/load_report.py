"""What a load test may claim: percentiles, bounds, and a verdict on stated objectives.

An error is an answer that came infinitely late: no percentile gets better because requests failed.

A percentile itself is stated from as many requests as MLPerf's LoadGen asks for: so many that the
share of requests above it is known within a twentieth of itself, at 99% confidence (270,336 for
p99). With fewer, two bounds say what is known: from the order statistics of any distribution, the
true percentile lies below `at_most_ms` with 99% confidence, and above `at_least_ms` with as much.
A verdict rests on these, so that a minute's run is enough where the service is clearly good.

Shape suffix: N requests.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from rich.console import Console
from rich.table import Table

from feature_repo.errors import InputError

PERCENTS = (50.0, 95.0, 99.0, 99.9)
CONFIDENCE = 0.99
MARGIN = 1 / 20
QUERIES_STEP = 2**13
LATE_CLIENT_MS = 2.0


@dataclass(frozen=True, kw_only=True)
class Objective:
    """So many percent of the requests are answered within `limit_ms`."""

    percent: float
    limit_ms: float

    @classmethod
    def parse(cls, text: str) -> "Objective":
        """`p99=20`: 99 percent within 20 ms. InputError for anything else."""
        name, _, limit = text.partition("=")
        names = {_name(percent): percent for percent in PERCENTS}
        try:
            objective = cls(percent=names[name], limit_ms=float(limit))
        except (KeyError, ValueError):
            objective = None
        if objective is None or not 0 < objective.limit_ms < math.inf:
            raise InputError(
                f"objective must be one of {', '.join(names)}, = and milliseconds above 0 "
                f"(p99=20), got {text!r}"
            )
        return objective


@dataclass(frozen=True, kw_only=True)
class Percentile:
    """One percentile of the time from when a request was due until its answer, milliseconds."""

    percent: float
    ms: float | None
    """None: fewer requests than `requests_needed`, or it lies among the errors."""
    at_least_ms: float | None
    at_most_ms: float | None
    """None: no bound from so few requests, or it lies among the errors."""
    requests_needed: int
    """For a claim of `ms`."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One objective and what the run says about it: met, missed or undecided."""

    objective: str
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The requests of this run that ended in one status or error; no claim about others."""

    count: int
    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """One load test, warm-up excluded. Latencies run from the moment a request was due."""

    requests: int
    seconds: float
    goodput: float
    """Answers 200 within the limit of the highest objective (any 200 without one), a second."""
    errors: int
    answers: dict[str, Answers]
    """By HTTP status, or by error (`serving.load_client.ERRORS`)."""
    degraded: dict[str, int]
    """Answers 200 by reason of degradation; one answer may have several."""
    releases: dict[str, int]
    """Answers 200 by the release that they name."""
    percentiles: dict[str, Percentile]
    objectives: list[Judged]
    verdict: str | None
    """`missed` if one objective is, else `undecided` if one is, else `met`; None without any."""
    client_cpu_ms: float
    """Of this client's thread, a request."""
    sent_late_p99_ms: float
    """How late the client itself was; the latencies contain it."""


def requests_needed(percent: float) -> int:
    """z^2 p (1 - p) / margin^2 with margin = (1 - p) / 20, rounded up to 2^13s (MLPerf LoadGen)."""
    p = percent / 100
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    needed = z**2 * p * (1 - p) / (MARGIN * (1 - p)) ** 2
    return math.ceil(needed / QUERIES_STEP) * QUERIES_STEP


def percentile(sorted_ms_N: np.ndarray, percent: float) -> Percentile:
    """Of ascending latencies, infinite for an error.

    The bounds are order statistics (David and Nagaraja, Order Statistics, 7.1): the k-th lowest of
    N exceeds the true p-quantile with the probability that Binomial(N, p) is below k.
    """
    count, p = len(sorted_ms_N), percent / 100
    needed = requests_needed(percent)
    above = _binomial_quantile(CONFIDENCE, count, p) + 1
    below = _binomial_quantile(1 - CONFIDENCE, count, p)
    return Percentile(
        percent=percent,
        ms=_lowest(sorted_ms_N, math.ceil(p * count)) if count >= needed else None,
        at_least_ms=_lowest(sorted_ms_N, below),
        at_most_ms=_lowest(sorted_ms_N, above),
        requests_needed=needed,
    )


def percentiles(latencies_ms_N: np.ndarray) -> dict[str, Percentile]:
    """p50 to p99.9 of all requests, infinite for an error."""
    sorted_ms_N = np.sort(latencies_ms_N)
    return {_name(percent): percentile(sorted_ms_N, percent) for percent in PERCENTS}


def judge(latencies_ms_N: np.ndarray, objectives: Sequence[Objective]) -> list[Judged]:
    """Each objective against the bounds of its percentile."""
    from scipy.special import bdtr, bdtrc  # of scipy.stats, the import costs seconds

    judged = []
    for objective in objectives:
        within = int((latencies_ms_N <= objective.limit_ms).sum())
        # So many within the limit, were the true share just the objective's: how likely is that?
        count, p = len(latencies_ms_N), objective.percent / 100
        if within and bdtrc(within - 1, count, p) <= 1 - CONFIDENCE:
            verdict = "met"
        elif bdtr(within, count, p) <= 1 - CONFIDENCE:
            verdict = "missed"
        else:
            verdict = "undecided"
        text = f"{_name(objective.percent)}={objective.limit_ms:g}"
        judged.append(Judged(objective=text, verdict=verdict))
    return judged


def overall(judged: Sequence[Judged]) -> str | None:
    verdicts = {one.verdict for one in judged}
    return next((v for v in ("missed", "undecided", "met") if v in verdicts), None)


def show(report: LoadReport, title: str) -> None:
    """Tables on standard error."""
    console = Console(stderr=True, highlight=False)
    table = Table(title=title)
    for heading in ("", "ms", "at least", "at most"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, one in report.percentiles.items():
        needs = f"needs {one.requests_needed:,}" if report.requests < one.requests_needed else "-"
        values = (_shown(value) for value in (one.at_least_ms, one.at_most_ms))
        table.add_row(name, needs if one.ms is None else _shown(one.ms), *values)
    console.print(table)
    table = Table()
    for heading in ("answers", "count", "p50 ms seen", "p99 ms seen", "max ms"):
        table.add_column(heading, justify="left" if heading == "answers" else "right")
    for kind, answers in report.answers.items():
        seen = (answers.p50_ms, answers.p99_ms, answers.max_ms)
        table.add_row(kind, f"{answers.count:,}", *map(_shown, seen))
    console.print(table)
    for name, counts in (("degraded", report.degraded), ("releases", report.releases)):
        if counts:
            console.print(f"{name}: " + ", ".join(f"{key} {n:,}" for key, n in counts.items()))
    console.print(
        f"goodput {report.goodput:.1f} a second; client {report.client_cpu_ms:.2f} ms of CPU a "
        f"request, {report.sent_late_p99_ms:.2f} ms late at its p99"
    )
    if report.sent_late_p99_ms > LATE_CLIENT_MS:
        console.print("the client was late itself: give it a core of its own, or a lower rate")
    for judged in report.objectives:
        console.print(f"{judged.objective}: {judged.verdict} (99% confidence)")


def _binomial_quantile(share: float, count: int, p: float) -> int:
    """The lowest k with P(Binomial(count, p) <= k) >= share."""
    from scipy.special import bdtr, bdtrik

    near = max(0, math.floor(bdtrik(share, count, p)))
    return next(k for k in (near - 1, near, near + 1) if k >= 0 and bdtr(k, count, p) >= share)


def _lowest(sorted_ms_N: np.ndarray, k: int) -> float | None:
    """The k-th lowest, counted from 1; None where there is none, or it is an error."""
    if not 1 <= k <= len(sorted_ms_N) or math.isinf(sorted_ms_N[k - 1]):
        return None
    return round(float(sorted_ms_N[k - 1]), 3)


def _name(percent: float) -> str:
    return f"p{percent:g}"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"

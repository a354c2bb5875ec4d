"""Load on a running service, as real users make it, and what it did to their waiting times.

    crescendo load-test --url http://127.0.0.1:8000 --rate 100 --seconds 60 --candidates 500 \
        --objective p50=5 --objective p99=20

An open loop: requests are due at the moments of a seeded Poisson process, and each is sent then,
whether earlier ones are answered or not. Its latency runs from that moment, so what queues
anywhere, in this client too, is counted (a loop that waits for answers sends less when the server
is slow, and never sees it). Writes nothing. Which requests: `serving/load_requests.py`; percentiles
and verdict: `serving/load_report.py`.

Shape suffix: N requests.
"""

import asyncio
import json
import re
import selectors
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from serving.load_client import HttpClient, Target
from serving.load_report import (
    Answers,
    LoadReport,
    Objective,
    judge,
    overall,
    percentiles,
    show,
)
from serving.load_requests import rank_bodies, read_ids, workspace_tracks, workspace_users

T = TypeVar("T")
MOST_BODIES = 2000
"""Distinct requests; a longer run sends them again. 500 candidates each are 8 MB."""
START_IN_S = 0.05
RETRY_AFTER_S = 1.0
"""Of a client in a closed loop that got no answer."""
RELEASE = re.compile(rb'"release_id":\s*"([^"]*)"')


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """One open-loop run against a target."""

    target: Target
    rate: float = 100.0
    """Requests a second."""
    seconds: float = 60.0
    warm_up_s: float = 5.0
    """Of the same load before that, not counted."""
    objectives: tuple[Objective, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rate", "seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.warm_up_s < float("inf"):
            raise InputError(f"warm_up_s must not be negative, got {self.warm_up_s}")


@dataclass(frozen=True, kw_only=True)
class ClosedReport:
    """A closed loop: each client sends its next request when it has its answer, and a second later
    where that was a refusal or an error (`Retry-After`)."""

    requests: int
    answers_per_s: float
    """Of status 200, with nothing given up."""
    degraded: int
    """Of status 200, with something given up."""
    errors: int
    p50_ms: float | None
    p99_ms: float | None
    """Of the first kind, from the moment of sending; None where there is none."""


def load_test(
    workspace: Workspace,
    options: LoadOptions,
    *,
    candidates: int = 500,
    users: str | None = None,
    tracks: str | None = None,
) -> dict[str, Any]:
    """`crescendo load-test`: draws requests, sends them, shows tables; returns the report.

    `users`, `tracks`: where ids are drawn from: `A-B`, or a file with one on each line; by default
    the users with listens, and the tracks of the live release, of the workspace.
    """
    user_ids_U = workspace_users(workspace) if users is None else read_ids("users", users)
    track_ids_I = workspace_tracks(workspace) if tracks is None else read_ids("tracks", tracks)
    random = np.random.default_rng(options.seed)
    count = int(options.rate * (options.seconds + options.warm_up_s)) + 1
    bodies = rank_bodies(user_ids_U, track_ids_I, candidates, min(count, MOST_BODIES), random)
    report = run_load(options, bodies)
    show(report, f"{options.rate:g} requests/s, {candidates} candidates, {options.target.url}")
    return asdict(report)


def run_load(options: LoadOptions, bodies: Sequence[bytes]) -> LoadReport:
    """Sends the bodies in turn, at the moments of the process, and waits for every outcome.

    No error of the service ends it. It runs an event loop of its own: call it outside of one.
    """
    random = np.random.default_rng(options.seed)
    total_s = options.warm_up_s + options.seconds
    expected = options.rate * total_s
    gaps_N = random.exponential(1 / options.rate, int(expected + 10 * expected**0.5 + 10))
    due_N = np.cumsum(gaps_N)
    due_N = due_N[due_N < total_s]
    return _run(_open_loop(options, bodies, due_N))


def run_closed(
    target: Target, bodies: Sequence[bytes], *, clients: int, seconds: float, warm_up_s: float = 1.0
) -> ClosedReport:
    """What the service does at most for so many clients that each wait for their answers."""
    return _run(_closed_loop(target, bodies, clients, warm_up_s, seconds))


class _Tally:
    """What became of the counted requests: N moments of due time, sending and end, and outcomes."""

    def __init__(self, requests: int) -> None:
        self.due_N, self.sent_N, self.ended_N = np.zeros((3, requests))
        self.outcomes = [""] * requests
        self.degraded: Counter[str] = Counter()
        self.releases: Counter[str] = Counter()
        self.cpu_s = 0.0

    def end(self, number: int, now: float, outcome: str, body: bytes) -> None:
        self.ended_N[number], self.outcomes[number] = now, outcome
        if outcome == "200":
            self.degraded.update(degraded_reasons(body))
            if named := RELEASE.search(body):
                self.releases[named[1].decode()] += 1

    def report(self, options: LoadOptions) -> LoadReport:
        outcomes_N = np.array(self.outcomes)
        answered_N = outcomes_N == "200"
        waited_ms_N = 1e3 * (self.ended_N - self.due_N)
        latencies_ms_N = np.where(answered_N, waited_ms_N, np.inf)
        strictest = max(options.objectives, key=lambda one: one.percent, default=None)
        limit_ms = np.inf if strictest is None else strictest.limit_ms
        good_N = answered_N & (waited_ms_N <= limit_ms)
        answers = {
            str(kind): Answers(
                count=len(own),
                p50_ms=round(float(np.percentile(own, 50)), 3),
                p99_ms=round(float(np.percentile(own, 99)), 3),
                max_ms=round(float(own.max()), 3),
            )
            for kind in np.unique(outcomes_N)
            for own in [waited_ms_N[outcomes_N == kind]]
        }
        judged = judge(latencies_ms_N, options.objectives)
        return LoadReport(
            requests=len(outcomes_N),
            seconds=options.seconds,
            goodput=round(float(good_N.sum()) / options.seconds, 2),
            errors=int((~answered_N).sum()),
            answers=answers,
            degraded=dict(self.degraded),
            releases=dict(self.releases),
            percentiles=percentiles(latencies_ms_N),
            objectives=judged,
            verdict=overall(judged),
            client_cpu_ms=round(1e3 * self.cpu_s / len(outcomes_N), 4),
            sent_late_p99_ms=round(1e3 * float(np.percentile(self.sent_N - self.due_N, 99)), 3),
        )


def degraded_reasons(body: bytes) -> list[str]:
    """The list `degraded` of an answer, without parsing its hundreds of results."""
    _, found, rest = body.rpartition(b'"degraded":')
    return json.JSONDecoder().raw_decode(rest.decode().lstrip())[0] if found else []


async def _open_loop(
    options: LoadOptions, bodies: Sequence[bytes], due_N: np.ndarray
) -> LoadReport:
    loop = asyncio.get_running_loop()
    client = HttpClient(options.target)
    encoded = [client.encoded(body) for body in bodies]
    first = int(np.searchsorted(due_N, options.warm_up_s))
    if first == len(due_N):
        raise InputError(
            f"no request is due within {options.seconds:g} s at {options.rate:g} a second; "
            "give a longer --seconds or a higher --rate"
        )
    tally = _Tally(len(due_N) - first)
    all_ended, left = asyncio.Event(), len(due_N)

    def done(number: int, outcome: str, body: bytes) -> None:
        nonlocal left
        left -= 1
        if number >= first:
            tally.end(number - first, loop.time(), outcome, body)
        if left == 0:
            all_ended.set()

    start = loop.time() + START_IN_S
    tally.due_N[:] = start + due_N[first:]
    begun_cpu_s = time.thread_time()
    for number, due in enumerate((start + due_N).tolist()):
        # Also where this client is behind: without it, no answer would be read.
        await asyncio.sleep(max(0.0, due - loop.time()))
        if number == first:
            begun_cpu_s = time.thread_time()
        if number >= first:
            tally.sent_N[number - first] = loop.time()
        client.send(encoded[number % len(encoded)], partial(done, number))
    await all_ended.wait()
    tally.cpu_s = time.thread_time() - begun_cpu_s
    client.close()
    return tally.report(options)


async def _closed_loop(
    target: Target, bodies: Sequence[bytes], clients: int, warm_up_s: float, seconds: float
) -> ClosedReport:
    loop = asyncio.get_running_loop()
    client = HttpClient(target)
    encoded = [client.encoded(body) for body in bodies]
    latencies_s: list[float] = []
    errors = degraded = 0

    async def one_client(number: int) -> None:
        nonlocal errors, degraded
        while (sent := loop.time()) < until:
            ended: asyncio.Future[tuple[str, bytes]] = loop.create_future()
            client.send(encoded[number % len(encoded)], partial(_settle, ended))
            outcome, body = await ended
            number += clients
            counted = loop.time() >= since
            if outcome != "200":
                errors += counted
                # One that is refused at once would ask a thousand times a second, which no client
                # that heeds Retry-After does: its refusals would hide what the others get.
                await asyncio.sleep(min(RETRY_AFTER_S, max(0.0, until - loop.time())))
            elif degraded_reasons(body):
                degraded += counted
            elif counted:
                latencies_s.append(loop.time() - sent)

    since = loop.time() + warm_up_s
    until = since + seconds
    await asyncio.gather(*(one_client(number) for number in range(clients)))
    client.close()
    # The last answers count, and the time until they came: else a slow service would show none.
    seconds = loop.time() - since
    return ClosedReport(
        requests=len(latencies_s) + degraded + errors,
        answers_per_s=round(len(latencies_s) / seconds, 2),
        degraded=degraded,
        errors=errors,
        p50_ms=round(1e3 * float(np.percentile(latencies_s, 50)), 3) if latencies_s else None,
        p99_ms=round(1e3 * float(np.percentile(latencies_s, 99)), 3) if latencies_s else None,
    )


def _settle(ended: "asyncio.Future[tuple[str, bytes]]", outcome: str, body: bytes) -> None:
    ended.set_result((outcome, body))


def _run(work: Coroutine[Any, Any, T]) -> T:
    # asyncio's usual selector, epoll, rounds a wait up to whole milliseconds; select() does not,
    # and a request is sent within a tenth of one.
    def new_loop() -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(selectors.SelectSelector())

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(work)

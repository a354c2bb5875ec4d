"""What is taken, cut down or refused, by the estimated wait as a share of the deadline."""

from collections import deque
from contextlib import ExitStack

import numpy as np
import pytest

from serving.pressure import (
    MOST_GROWTH,
    REQUEST_S,
    SMOOTHING,
    Overloaded,
    Pressure,
    PressureOptions,
)

DEADLINE_S = 0.1


def pressure(candidate_s=1e-5, request_s=5e-4, **options):
    """One whose candidates and requests are known to cost so much."""
    made = Pressure(PressureOptions(**options))
    for _ in range(400):
        made.measured(1000, 1000 * candidate_s)
        made.answered(request_s + 1000 * candidate_s, 1000 * candidate_s)
    return made


def is_refused(p):
    try:
        with p.taken(1000, DEADLINE_S):
            return False
    except Overloaded:
        return True


def test_steps_follow_the_work_ahead():
    p = pressure()  # a thousand candidates: 10 ms, so with the request 10.5
    scored: list[int] = []
    blocks = ExitStack()
    while not is_refused(p):
        scored.append(blocks.enter_context(p.taken(1000, DEADLINE_S)))
    # Ahead of each: 0, 10.5, 21, 31.5, 42 ms (over 0.4), 47.5, 53, 58.5, 64 (over 0.6), 66.5, ...
    assert scored[:4] == [1000] * 4
    assert scored[4:8] == [500] * 4
    assert scored[8:] == [200] * len(scored[8:])
    ahead_s = len(scored) * 5e-4 + sum(scored) * 1e-5
    assert 0.8 * DEADLINE_S < ahead_s < 0.8 * DEADLINE_S + 0.0026
    blocks.close()
    assert p.waiting == 0
    with p.taken(1000, DEADLINE_S) as all_again:
        assert all_again == 1000


def test_what_a_request_costs_beside_its_candidates_is_work_ahead():
    p = pressure()
    with p.taken(0, DEADLINE_S, 0.039):  # two fifths of the deadline nearly
        with p.taken(1000, DEADLINE_S) as scored:
            assert scored == 1000
        with p.taken(0, DEADLINE_S, 0.019), p.taken(1000, DEADLINE_S) as scored:
            assert scored == 500
        with p.taken(0, DEADLINE_S, 0.042):
            assert is_refused(p)
    assert not is_refused(p)
    for _ in range(200):
        with p.taken(0, DEADLINE_S, 0.03):
            pass
    with p.arriving(), p.arriving():
        assert not p.is_hopeless()
        with p.arriving():
            assert p.is_hopeless()  # three times thirty and a half


def test_small_requests_are_never_cut():
    p = pressure()
    with p.taken(2000, 0.06), p.taken(100, 0.06) as scored:
        assert scored == 100


def test_a_shorter_deadline_is_sooner_refused():
    p = pressure()
    with p.taken(1000, DEADLINE_S), pytest.raises(Overloaded), p.taken(1, 0.01):
        pass
    assert p.waiting == 0


def test_an_error_inside_gives_back_what_was_taken():
    p = pressure()
    with pytest.raises(KeyError), p.taken(1000, DEADLINE_S):
        raise KeyError
    assert p.waiting == 0
    with p.taken(1000, 1e-9) as scored:  # nothing lies ahead
        assert scored == 1000


def test_at_most_so_many_wait():
    p = pressure(max_waiting=2)
    with p.taken(1, 9), p.taken(1, 9), pytest.raises(Overloaded, match="too many"), p.taken(1, 9):
        pass


def test_what_is_affordable_in_the_time_left():
    p = pressure()
    assert p.affordable(500, 0.005 + 1e-9) == 500
    assert 298 <= p.affordable(500, 0.003) <= 300
    assert p.affordable(500, 0.0001) == 0  # ten candidates are not worth a pass
    assert p.affordable(500, -1.0) == 0
    assert p.affordable(10, 0.01) == 10


def test_the_cost_follows_what_is_measured():
    p = pressure(candidate_s=1e-5)
    for _ in range(100):
        p.measured(500, 500 * 4e-5)
    assert p.affordable(10_000, 0.04) == pytest.approx(1000, rel=0.02)


@pytest.mark.parametrize("name", ["deadline_ms", "read_budget_ms", "max_waiting"])
def test_bad_options_name_field_and_value(name):
    with pytest.raises(ValueError, match=f"{name} must be above 0, got 0"):
        PressureOptions(**{name: 0})


def test_what_is_here_and_not_yet_read_counts_too():
    p = pressure()  # deadline 100 ms; a request of 1,000 candidates: 10.5 ms
    for _ in range(200):
        with p.taken(1000, DEADLINE_S):
            pass
    with ExitStack() as here:
        arrived = 0
        while not p.is_hopeless():
            here.enter_context(p.arriving())
            arrived += 1
    assert arrived == 7  # 7 x 10.5 ms > 70 ms
    assert not p.is_hopeless()
    with ExitStack() as calls:  # that came by gRPC
        for _ in range(7):
            assert not p.is_hopeless()
            calls.enter_context(p.taken(1000, 1.0))
        assert p.is_hopeless()


def test_what_a_request_costs_is_learned_from_turns_that_were_waited_for():
    p = pressure(request_s=5e-3)
    assert p._request_s == pytest.approx(5e-3)
    p.answered(10.0, 0.0)  # the machine paused
    paused = p._request_s
    assert paused == pytest.approx(5e-3 * (1 + SMOOTHING * (MOST_GROWTH - 1)))
    for _ in range(300):
        p.answered(None, 0.001)  # nobody waits: a high estimate must not keep everybody out
    assert p._request_s == pytest.approx(REQUEST_S, rel=1e-3)
    low = pressure(request_s=5e-4)
    low.answered(None, 0.001)
    assert low._request_s == pytest.approx(5e-4)


class Server:
    """One process in simulated time: what it does costs so much, and requests come when they come.

    `unread_s`, `read_s`: what a refusal costs before the request is read, and after.
    """

    def __init__(self, *, request_s, candidate_s, unread_s, read_s):
        self.request_s, self.candidate_s = request_s, candidate_s
        self.unread_s, self.read_s = unread_s, read_s

    def run(self, rate, *, seconds=15.0, warm_up_s=5.0, candidates=500):
        """Answers within the deadline, a second, and refusals, unread and read."""
        random = np.random.default_rng(0)
        coming = deque(np.cumsum(random.exponential(1 / rate, int(rate * seconds))).tolist())
        p, queue = Pressure(PressureOptions()), deque()
        now = ended_s = 0.0
        was_awaited = False
        good = unread = read = 0
        while coming or queue:
            if not queue:
                now = max(now, coming[0])
            while coming and coming[0] <= now:  # between two turns the loop looks at the sockets
                arrived_s = coming.popleft()
                counts = arrived_s > warm_up_s
                if p.is_hopeless():
                    now += self.unread_s
                    unread += counts
                    continue
                with ExitStack() as blocks:
                    blocks.enter_context(p.arriving())
                    try:
                        scored = blocks.enter_context(p.taken(candidates, DEADLINE_S))
                    except Overloaded:
                        now += self.read_s
                        read += counts
                    else:
                        queue.append((arrived_s, scored, blocks.pop_all()))
            if queue:
                arrived_s, scored, blocks = queue.popleft()
                scored = p.affordable(scored, arrived_s + DEADLINE_S - now)
                score_s = self.candidate_s * scored * random.gamma(20, 1 / 20)
                now += self.request_s * random.gamma(20, 1 / 20) + score_s
                p.measured(scored, score_s)
                p.answered(now - ended_s if was_awaited else None, score_s)
                ended_s, was_awaited = now, bool(queue)
                blocks.close()
                good += warm_up_s < arrived_s and now <= arrived_s + DEADLINE_S
        return good / (seconds - warm_up_s), unread, read


@pytest.mark.parametrize("request_s", [1e-3, 3e-3, 8e-3])
def test_goodput_holds_at_twice_and_four_times_the_capacity(request_s):
    server = Server(request_s=request_s, candidate_s=4e-6, unread_s=1.5e-4, read_s=1e-3)
    capacity = 1 / (request_s + 500 * 4e-6)
    peak = max(server.run(share * capacity)[0] for share in (0.85, 1.0, 1.2))
    assert peak >= 0.85 * capacity
    for times in (2, 4):
        goodput, unread, read = server.run(times * capacity)
        assert goodput >= 0.9 * peak
        assert unread > 0.99 * (unread + read)

"""What is taken, cut down or refused, by the estimated wait as a share of the deadline."""

from contextlib import ExitStack

import pytest

from serving.pressure import REQUEST_S, Overloaded, Pressure, PressureOptions

DEADLINE_S = 0.1


def pressure(candidate_s=1e-5, **options):
    """One whose candidates are known to cost so much."""
    made = Pressure(PressureOptions(**options))
    for _ in range(400):
        made.measured(1000, 1000 * candidate_s)
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
    # Ahead of each: 0, 10.5, 21 ms, 31.5 (over a quarter), 37, 42.5 (over 0.4), 45, 47.5
    assert scored[:3] == [1000] * 3
    assert scored[3:5] == [500] * 2
    assert scored[5:] == [200] * len(scored[5:])
    ahead_s = len(scored) * REQUEST_S + sum(scored) * 1e-5
    assert DEADLINE_S / 2 < ahead_s < DEADLINE_S / 2 + 0.0026
    blocks.close()
    assert p.waiting == 0
    with p.taken(1000, DEADLINE_S) as all_again:
        assert all_again == 1000


def test_what_a_request_costs_beside_its_candidates_is_work_ahead():
    p = pressure()
    with p.taken(0, DEADLINE_S, 0.024):  # a quarter of the deadline nearly
        with p.taken(1000, DEADLINE_S) as scored:
            assert scored == 1000
        with p.taken(0, DEADLINE_S, 0.012), p.taken(1000, DEADLINE_S) as scored:
            assert scored == 500
        with p.taken(0, DEADLINE_S, 0.027):
            assert is_refused(p)
    assert not is_refused(p)
    for _ in range(200):
        with p.taken(0, DEADLINE_S, 0.02):
            pass
    with p.arriving(), p.arriving():
        assert not p.is_hopeless()
        with p.arriving():
            assert p.is_hopeless()  # three times twenty and a half


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
    assert arrived == 5  # 5 x 10.5 ms > 50 ms
    assert not p.is_hopeless()

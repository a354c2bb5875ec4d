"""Turns come in order, one in each round of the loop, and none is lost with its client."""

import asyncio
import time

from serving.turns import Turns


def test_turns_come_in_order_and_the_loop_goes_round_in_between():
    happened = []

    async def worker(turns, name):
        async with turns:
            happened.append(name)

    async def ticks():
        while len([one for one in happened if one != "tick"]) < 3:
            happened.append("tick")
            await asyncio.sleep(0)

    async def run():
        turns = Turns()
        await asyncio.gather(*(worker(turns, name) for name in "abc"), ticks())

    asyncio.run(run())
    assert [one for one in happened if one != "tick"] == ["a", "b", "c"]
    for first, second in ("ab", "bc"):
        assert "tick" in happened[happened.index(first) : happened.index(second)]


def test_a_turn_that_was_cancelled_or_failed_goes_to_the_next():
    happened = []

    async def worker(turns, name):
        async with turns:
            if name == "fails":
                raise KeyError(name)
            happened.append(name)

    async def run():
        turns = Turns()
        names = ["first", "gone", "fails", "last"]
        tasks = [asyncio.create_task(worker(turns, name)) for name in names]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Cancelled in the very round in which its turn came.
        late = asyncio.create_task(worker(turns, "late"))
        after = asyncio.create_task(worker(turns, "after"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        late.cancel()
        await asyncio.wait_for(after, 30)
        await worker(turns, "again")

    asyncio.run(run())
    assert [name for name in happened if name != "late"] == ["first", "last", "after", "again"]


def test_the_time_between_two_ends_is_told_where_somebody_waited():
    times = []

    async def worker(turns, seconds):
        async with turns:
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                pass
        times.append(turns.after_s)

    async def run():
        turns = Turns()
        await asyncio.gather(*(worker(turns, seconds) for seconds in (0.0, 0.002, 0.004)))
        await worker(turns, 0.0)

    asyncio.run(run())
    first, second, third, alone = times
    assert first is None
    assert second >= 0.002
    assert third >= 0.004
    assert alone is None

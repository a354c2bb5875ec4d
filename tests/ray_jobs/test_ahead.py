"""Calling a function ahead of who takes its results."""

import threading

import pytest

from ray_jobs.ahead import ahead


def test_results_come_in_the_order_of_the_items():
    assert list(ahead(lambda item: item**2, range(50), threads=3)) == [n**2 for n in range(50)]
    assert list(ahead(lambda item: item, [], threads=2)) == []


def test_no_more_than_threads_are_made_ahead():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    results = ahead(lambda item: item, items(), threads=2)
    next(results)
    assert len(taken) == 3


def test_what_the_function_raises_is_raised_at_its_place():
    def fails_at_three(item):
        if item == 3:
            raise OSError("file 3 is gone")
        return item

    results = ahead(fails_at_three, range(6), threads=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="file 3 is gone"):
        next(results)


def test_its_threads_end_when_it_is_left():
    results = ahead(lambda item: item, range(10), threads=2)
    next(results)
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]

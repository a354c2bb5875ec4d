"""Calls a function on each of many items in threads, some ahead of who takes the results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int
) -> Iterator[Result]:
    """The results in the order of the items; at most `threads` are made ahead.

    What the function raises is raised here. Reading parquet, numpy and copies to a device let go of
    the interpreter, so they go on beside a training step.
    """
    left = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        made = deque(pool.submit(function, item) for item in islice(left, threads))
        try:
            while made:
                result = made.popleft().result()
                made.extend(pool.submit(function, item) for item in islice(left, 1))
                yield result
        finally:
            for future in made:
                future.cancel()

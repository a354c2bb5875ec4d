"""Chunks of rows on several CPU threads, each computing its chunk alone.

A chunk's steps are small: with torch's own threads each step ends in a barrier, and a busy core
makes all others wait at every one, spinning: seven times the work where two cores are shared.
Here threads meet once, at the end.

Shape suffixes: M rows, D dims, K columns.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part")
Result = TypeVar("Result")
_shared: ContextVar[int] = ContextVar("threads of `each` inside `only_each`", default=0)


@contextmanager
def only_each() -> Iterator[None]:
    """Inside, `each` and `product` alone use threads; an operation of torch takes one."""
    before = torch.get_num_threads()
    token = _shared.set(_shared.get() or before)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _shared.reset(token)
        torch.set_num_threads(before)


def each(work: Callable[[Part], Result], parts: Iterable[Part]) -> list[Result]:
    """`work` of every part, in order, on as many threads as torch would use."""
    parts, before = list(parts), torch.get_num_threads()
    threads = _shared.get() or before
    if threads == 1 or len(parts) < 2:
        return [work(part) for part in parts]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, parts))
    finally:
        torch.set_num_threads(before)


def product(a_MD: Tensor, b_DK: Tensor) -> Tensor:
    """a @ b; on a CPU inside `only_each` threads share the rows of `a`."""
    if not _shared.get() or a_MD.is_cuda:
        return a_MD @ b_DK
    size = max(1, -(-len(a_MD) // _shared.get()))
    return torch.cat(each(lambda rows_MD: rows_MD @ b_DK, a_MD.split(size)))

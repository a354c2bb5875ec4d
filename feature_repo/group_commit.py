"""Group commit: concurrent calls share one run of work that costs as much for many as for one.

A sync to disk or a round trip to a store takes milliseconds, whatever it carries. Calls that come
while one runs wait for it and go together in the next.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class _Group(Generic[Item, Result]):
    items: list[Item] = field(default_factory=list)
    ended: bool = False
    results: Sequence[Result] = ()
    error: BaseException | None = None


class GroupCommit(Generic[Item, Result]):
    """`work(items)` answers one result an item; only one `work` runs at a time."""

    def __init__(self, work: Callable[[list[Item]], Sequence[Result]]) -> None:
        self._work = work
        self._joining = threading.Lock()
        self._working = threading.Lock()
        self._group: _Group[Item, Result] = _Group()

    def do(self, item: Item) -> Result:
        """The result of `item`. An error of the work is raised in every call of its group."""
        with self._joining:
            group = self._group
            place = len(group.items)
            group.items.append(item)
        with self._working:
            if not group.ended:
                with self._joining:
                    self._group = _Group()
                self._run(group)
        if group.error is not None:
            raise group.error
        return group.results[place]

    def _run(self, group: _Group[Item, Result]) -> None:
        try:
            group.results = self._work(group.items)
        except BaseException as error:
            group.error = error
        group.ended = True

"""Takes turns at a model that several threads of an actor share, so that a GPU has no gap.

A call begins its work on the device and then waits for it; the next call begins meanwhile, one at a
time: its samples are copied while the device computes the last ones. On a CPU all the work is done
where it begins. Rows that are tried one by one, as one of them may end the process, have the model
alone: nobody else's row can be blamed then, and they are to blame for nothing else.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Turns:
    def __init__(self) -> None:
        self._beginning = threading.Lock()
        self._ended = threading.Condition()
        self._begun = 0

    def beside(self, begin: Callable[[], Callable[[], T]]) -> T:
        """What the call that `begin` returns gives; others may begin while it waits."""
        with self._beginning:
            finish = begin()
            with self._ended:
                self._begun += 1
        try:
            return finish()
        finally:
            with self._ended:
                self._begun -= 1
                self._ended.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Begins when all that was begun has ended; nobody begins before it ends."""
        with self._beginning:
            with self._ended:
                self._ended.wait_for(lambda: not self._begun)
            yield

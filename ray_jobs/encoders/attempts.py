"""How often a chunk has killed the worker that had it, and in the end which of its rows does.

A file can end its decoder's whole process, an input that of a model: a fault in a C library, memory
that runs out. Ray gives the chunk to a new worker, and would go on doing so for ever. So a worker
writes down in the run's folder that it begins a chunk; who finds that two before it did not come to
the end goes row by row, writes down each, and the row at which such a worker ended is an error row
for the next one. Where the chunk's first rows all end their workers, the fault is hardly theirs:
the next worker refuses to go on.
"""

from itertools import pairwise
from pathlib import Path

from feature_repo.errors import InputError

CAREFUL_FROM = 2
"""Workers that a chunk has ended: one may have been killed for another reason."""
START = "start"
KILLER = "killed its worker: the process ended while it did the track"
DEADLY_ROWS = 3


class Attempts:
    """Of one chunk in one stage; made when a worker begins it.

    InputError where every row so far has ended its worker.
    """

    def __init__(self, path: Path, stage: str) -> None:
        self._path = path
        lines = path.read_text().split() if path.exists() else []
        self.careful = lines.count(START) >= CAREFUL_FROM
        self.killers = {
            int(row) for row, after in pairwise([*lines, START]) if row != START == after
        }
        """Rows at which a worker ended."""
        if len(self.killers) >= DEADLY_ROWS and self.killers == set(range(len(self.killers))):
            raise InputError(
                f"{stage} has ended its process at each of the first {len(self.killers)} tracks of "
                "a chunk, so it is hardly their fault: memory, driver or library? Try --cpu, or a "
                "smaller --batch-size; what was embedded is kept"
            )
        self._write(START)

    def begin(self, row: int) -> None:
        self._write(str(row))

    def end(self) -> None:
        self._path.unlink(missing_ok=True)

    def _write(self, line: str) -> None:
        with self._path.open("a") as log:
            log.write(f"{line}\n")

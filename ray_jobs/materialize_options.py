"""The options of `crescendo materialize`."""

from dataclasses import dataclass

from feature_repo.errors import InputError


@dataclass(frozen=True, kw_only=True)
class MaterializeOptions:
    views: tuple[str, ...] = ()
    """Names of registered views; empty: all that go online."""
    late_bound_h: float = 24
    """Hours before the watermark that are read again: rows that came so late cost nothing more."""
    full: bool = False
    """Read the whole source, whatever the watermark says."""
    replace: bool = False
    """The source is the truth: online rows become what it says even where they are newer than its
    rows, but not where they are newer than the source itself. For sources that lost rows."""
    remove_vanished: bool = False
    """Remove online rows whose entity the source has no more. Without it they are counted."""
    chunk_rows: int = 50_000_000
    """Source rows of one chunk: what a run that was killed does again at most, about half a minute
    of work. A log lies by user, so each chunk of time reads all of it and writes every user."""

    def __post_init__(self) -> None:
        if not 0 <= self.late_bound_h < 24 * 365 * 100:
            raise InputError(f"late_bound_h must be hours, at least 0, got {self.late_bound_h}")
        if self.chunk_rows < 1:
            raise InputError(f"chunk_rows must be at least 1, got {self.chunk_rows}")

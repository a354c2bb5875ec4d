"""How many candidates each source of retrieval proposes.

A source that has fewer leaves its places to `popular`, and that to `new`, so that a user without
a history gets as many candidates as any other. `mme_sid` has a share only where it proposes any.
"""

from dataclasses import dataclass

SOURCES = ("vectors", "prefix", "popular", "new", "mme_sid")
"""In the order of their bits in `Candidates.sources_C`. What each proposes:

vectors   tracks whose vectors are nearest to the mean of the last listens'
prefix    tracks that share the longest semantic-ID prefix with a listen, joint IDs first
popular   tracks that were played most in the last days
new       tracks that were released last
mme_sid   tracks that the release's retriever model expects next (`mme_sid_source.py`)
"""
MAX_CANDIDATES = 2000


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions:
    """Candidates of each source; 500 in all by default."""

    vectors: int = 200
    prefix: int = 150
    popular: int = 100
    new: int = 50
    mme_sid: int = 0
    """Only where the retriever model proposes any: `WITH_MME_SID`."""
    include_seen: bool = False
    """Tracks of the history may be candidates."""

    def __post_init__(self) -> None:
        for name in SOURCES:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 1 <= self.total <= MAX_CANDIDATES:
            raise ValueError(
                f"{' + '.join(SOURCES)} must be 1 to {MAX_CANDIDATES}, got {self.total}"
            )

    @property
    def total(self) -> int:
        return sum(getattr(self, name) for name in SOURCES)


WITH_MME_SID = {"mme_sid": 200, "vectors": 100, "prefix": 75, "popular": 75, "new": 50}
"""Shares where a retriever model proposes tracks: as many candidates in all, so that ranking them
costs the same."""

"""What the HTTP routes take and give, with its bounds.

Bodies are refused as a whole (422) where a field is unknown, missing, of another type or out of
bounds: a client learns of a mistake at its first request, not from odd rankings.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, FailFast, Field, model_validator

MAX_CANDIDATES = 2000
MAX_COUNT = 200
MAX_HISTORY = 1000
MAX_UNKNOWN = 10
"""Unknown fields that are each named in the answer."""
Int64 = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
Degradation = Literal["user_unavailable", "user_stale", "fewer_candidates", "popularity"]
"""What was given up for an answer in time:

user_unavailable   the online store did not answer: ranked as for a user without listens
user_stale         the user's row is older than features may be (`feature_repo.freshness`), or the
                   candidates scored for the user are older than the listens by more than two days
fewer_candidates   under load: the request's first candidates were scored, the others follow by
                   popularity, without a score; or a recommendation had no time for the release's
                   retriever model, and the other sources filled its places
popularity         no time was left for the model: all are ordered by popularity, without scores
"""


class Body(BaseModel):
    """A request's body. Wrong ones are told apart early: pydantic collects an error for each of ten
    thousand unknown fields, which holds up everyone else's answers for half a second."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def few_fields(cls, data: Any) -> Any:
        known = len(cls.model_fields)
        if isinstance(data, dict) and len(data) > known + MAX_UNKNOWN:
            raise ValueError(f"{len(data)} fields, of which at most {known} are known")
        return data


class RankRequest(Body):
    user_id: Int64
    candidates: Annotated[list[Int64], FailFast()] = Field(min_length=1, max_length=MAX_CANDIDATES)
    """In the order of their retrieval: under load the first ones are scored."""


class RecommendRequest(Body):
    """For a user, or for anyone with this history: exactly one of the two."""

    user_id: Int64 | None = None
    history: Annotated[list[Int64] | None, FailFast()] = Field(default=None, max_length=MAX_HISTORY)
    """Track ids, newest last."""
    count: int = Field(default=20, strict=True, ge=1, le=MAX_COUNT)
    max_per_artist: int | None = Field(default=None, strict=True, ge=1)
    max_per_prefix: int | None = Field(default=None, strict=True, ge=1)
    """Of tracks with the same first code of the joint ID."""
    include_seen: bool = Field(default=False, strict=True)

    @model_validator(mode="after")
    def one_listener(self) -> Self:
        if (self.user_id is None) == (self.history is None):
            raise ValueError("give either user_id or history")
        return self


class Missing(BaseModel):
    user: bool
    """True: no listen of this user is known; the ranking is not personal."""
    tracks: list[int]
    """Candidates that the release's generation does not hold; they are not ranked."""


class RankedTrack(BaseModel):
    track_id: int
    score: float | None
    """Probability of the label; null: not scored, see `degraded`."""


class RankResponse(BaseModel):
    release_id: str
    user_id: int
    results: list[RankedTrack]
    missing: Missing
    degraded: list[Degradation]


class RecommendedTrack(RankedTrack):
    sources: list[str]
    """Which retrievals proposed it: vectors, prefix, popular, new, mme_sid."""


class RecommendResponse(BaseModel):
    release_id: str
    user_id: int | None
    results: list[RecommendedTrack]
    missing: Missing
    degraded: list[Degradation]

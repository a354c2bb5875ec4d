"""Column names, types, list lengths and defaults: the data contract and the feature views.

Plain constants, no imports but pyarrow, so that other teams can depend on this file alone.
"""

from datetime import UTC, datetime

import pyarrow as pa

TIMESTAMP = pa.timestamp("us", tz="UTC")

# --- the data contract -----------------------------------------------------------------------

TRACKS = pa.schema(
    [
        pa.field("track_id", pa.int64(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("artist", pa.string()),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("lyrics", pa.string()),
        pa.field("audio_uri", pa.string()),
        pa.field("released_at", TIMESTAMP),
        pa.field("duration_s", pa.float64()),
    ]
)
"""One row a track. `<modality>_vector` columns (fixed_size_list<float32>) may follow."""

EVENTS = pa.schema(
    [
        pa.field("event_id", pa.int64(), nullable=False),
        pa.field("user_id", pa.int64(), nullable=False),
        pa.field("track_id", pa.int64(), nullable=False),
        pa.field("event_timestamp", TIMESTAMP, nullable=False),
        pa.field("action", pa.string(), nullable=False),
        pa.field("played_ratio", pa.float64()),
        pa.field("session_id", pa.int64()),
        pa.field("ingested_at", TIMESTAMP),
    ]
)
"""One row a listening event. `ingested_at` is when the log received it; null means at once.

A late event (ingested_at after event_timestamp) is invisible to features before it arrived.
"""

VECTOR_SUFFIX = "_vector"
ACTIONS = ("play", "complete", "skip", "favourite")
ACTION_CODES = {name: code for code, name in enumerate(ACTIONS, start=1)}
LISTEN_ACTIONS = ("play", "complete", "favourite")
"""The actions that enter a user's sequence: a skipped track was not listened to."""

# --- entities --------------------------------------------------------------------------------

USER_ID = "user_id"
TRACK_ID = "track_id"
EVENT_TIMESTAMP = "event_timestamp"

# --- semantic ids ----------------------------------------------------------------------------

JOINT = "joint"
SID_SUFFIX = "_sid"
GENERATION = "generation_id"
CONTENT_SINCE = datetime(1970, 1, 2, tzinfo=UTC)
"""Feast time of every semantic-ID row. Not the epoch itself: that is how stores spell missing."""


def sid_column(family: str) -> str:
    """Column of one ID family: `text` -> `text_sid`."""
    return f"{family}{SID_SUFFIX}"


# --- feature views ---------------------------------------------------------------------------

USER_SEQUENCE = "user_sequence"
USER_STATS = "user_stats"
TRACK_STATS = "track_stats"
TRACK_SEMANTIC_IDS = "track_semantic_ids"

SEQUENCE_LENGTH = 20
"""Listens kept per user, newest last: the paper's history length."""
SEQUENCE_TRACK_IDS = "seq_track_ids"
SEQUENCE_TIMESTAMPS = "seq_timestamps_us"
SEQUENCE_ACTIONS = "seq_actions"
SEQUENCE_EVENT_IDS = "seq_event_ids"
SEQUENCE_COLUMNS = (SEQUENCE_TRACK_IDS, SEQUENCE_TIMESTAMPS, SEQUENCE_ACTIONS, SEQUENCE_EVENT_IDS)
"""Parallel lists. Microseconds and event ids order them and make a second arrival no listen."""
SEQUENCE_LENGTH_TAG = "sequence_length"
"""Feast tag of a view whose source is an event log: rows are built and merged, not stored."""

LISTENED_AT = "listened_at"
EVENT_LOG = pa.schema(
    [
        pa.field(USER_ID, pa.int64(), nullable=False),
        pa.field(EVENT_TIMESTAMP, TIMESTAMP, nullable=False),
        pa.field(LISTENED_AT, TIMESTAMP, nullable=False),
        pa.field("event_id", pa.int64(), nullable=False),
        pa.field(TRACK_ID, pa.int64(), nullable=False),
        pa.field("action", pa.int64(), nullable=False),
    ]
)
"""Source of `user_sequence`: one row a listen. `event_timestamp` is the first moment at which a
reader may see it, one microsecond after it has happened and reached the log; `listened_at` is
when it happened, which together with `event_id` orders a sequence. No event_id comes twice."""

STATS_WINDOWS_DAYS = (7, 28)
STATS_COUNTS = ("plays", "completes", "skips", "favourites")

COLLABORATIVE = "collaborative"
TRACK_COLLABORATIVE = "track_collaborative"
COLLABORATIVE_VECTOR = f"{COLLABORATIVE}{VECTOR_SUFFIX}"
COLLABORATIVE_ENCODER = "collaborative_encoder_id"
"""The modality that is learned from listens: `crescendo sasrec` makes it, a view publishes it."""

USER_CANDIDATES = "user_candidates"
CANDIDATE_TRACK_IDS = "candidate_track_ids"
CANDIDATE_SCORES = "candidate_scores"
CANDIDATE_MODEL = "candidate_model_id"
CANDIDATES_MADE_AT = "candidates_made_at_us"
"""What a retriever model proposes to a user: tracks, best first, and their scores (parallel lists,
no track of the history among them); which model, and when, in microseconds since 1970."""


def stats_columns(entity: str) -> tuple[str, ...]:
    """Count columns of `user` or `track`: events in the days before the row's own day.

    `plays` counts every action but skips.
    """
    return tuple(
        f"{entity}_{count}_{days}d" for count in STATS_COUNTS for days in STATS_WINDOWS_DAYS
    )


def semantic_ids_view_name(generation_id: str) -> str:
    """Feast view of one generation's IDs: Feast names take no hyphens."""
    return f"{TRACK_SEMANTIC_IDS}_{generation_id.replace('-', '_')}"


def candidates_view_name(model_id: str) -> str:
    """Feast view of what one retriever model proposes to the users."""
    return f"{USER_CANDIDATES}_{model_id.replace('-', '_')}"


def ranker_service_name(release_id: str) -> str:
    """Feast feature service of one release."""
    return f"ranker_{release_id.replace('-', '_')}"

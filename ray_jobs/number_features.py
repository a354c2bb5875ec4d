"""The features that rankers may see beside IDs: their groups, names and column.

    crescendo train --features user,track,context

user     windowed counts of the user (view `user_stats`)
track    windowed counts of the candidate (view `track_stats`)
context  hour and weekday of the request in UTC, history length, time since the last listen
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from feature_repo import schema
from feature_repo.errors import InputError
from models.number_rows import CONTEXT

FEATURE_GROUPS = ("user", "track", "context")
STATS_VIEWS = {"user": schema.USER_STATS, "track": schema.TRACK_STATS}
NUMBERS = "numbers"
"""Column fixed_size_list<float32>[N] of a training set; only where there are numbers."""


def check_groups(groups: Sequence[str]) -> None:
    """InputError for an unknown group, and for one that is named twice."""
    for group in groups:
        if group not in FEATURE_GROUPS:
            raise InputError(f"features must be among {FEATURE_GROUPS}, got {group!r}")
    if len(set(groups)) < len(groups):
        raise InputError(f"features must name each group once, got {tuple(groups)}")


def number_names(groups: Sequence[str]) -> tuple[str, ...]:
    """The numbers of these groups, in the one order that they have in every batch."""
    of_group = {
        "user": schema.stats_columns("user"),
        "track": schema.stats_columns("track"),
        "context": CONTEXT,
    }
    return tuple(name for group in FEATURE_GROUPS if group in groups for name in of_group[group])


def sequence_features(groups: Sequence[str]) -> list[str]:
    """What is read of the user's sequence."""
    timestamps = [schema.SEQUENCE_TIMESTAMPS] if "context" in groups else []
    return [schema.SEQUENCE_TRACK_IDS, *timestamps]


def feature_references(groups: Sequence[str]) -> list[str]:
    """`view:feature` of all that a ranker with these groups reads, semantic IDs aside."""
    references = [f"{schema.USER_SEQUENCE}:{name}" for name in sequence_features(groups)]
    for group, view in STATS_VIEWS.items():
        if group in groups:
            references += [f"{view}:{name}" for name in schema.stats_columns(group)]
    return references


def numbers_of(rows: pa.Table) -> np.ndarray | None:
    """The column of numbers as (B, N) float32; None where the rows have none."""
    if NUMBERS not in rows.column_names:
        return None
    column = rows[NUMBERS].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False, writable=True).reshape(len(column), -1)

"""How fresh the features are: of every view, and of one user's rows.

    crescendo freshness [--user USER] [--max-age-h VIEW=HOURS]...

Writes nothing. A view is as old as its watermark, the moment up to which everything is online: a
log in which nothing happens does not make a view stale, a night without materialization does. A
user's row is as old as the newest event in it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow.parquet as pq

from feature_repo import schema
from feature_repo.artifacts import parquet_files
from feature_repo.errors import InputError
from feature_repo.freshness import HOUR, MAX_AGE_H, MAX_USER_AGE_H, Age, age, bound_of
from feature_repo.workspace import Workspace
from ray_jobs.forget_ids import resolve_user
from ray_jobs.watermarks import read_watermark


@dataclass(frozen=True, kw_only=True)
class FreshnessOptions:
    user: str | None = None
    """Also this user's rows: the number, or the id that the source gave."""
    max_age_h: Mapping[str, float] = field(default_factory=dict)
    """Bounds that replace the defaults of some views."""
    max_user_age_h: Mapping[str, float] = field(default_factory=dict)
    """The same for the rows of the user."""

    def __post_init__(self) -> None:
        for name in ("max_age_h", "max_user_age_h"):
            for view, hours in getattr(self, name).items():
                if not hours > 0:
                    raise InputError(f"{name} of {view} is {hours}; expected hours above 0")


def freshness(
    workspace: Workspace, options: FreshnessOptions, now: datetime | None = None
) -> dict[str, Any]:
    """Returns `views` (per view: watermark, newest_source_row, behind_h, age_h, max_age_h, stale),
    the names of the `stale` ones and, if a user was asked for, `user` with the same of each row.

    `now` is the moment to judge at, by default this machine's.
    """
    now = now or datetime.now(UTC)
    from feature_repo.store import open_store

    store = open_store(workspace)
    views = store.list_feature_views()
    _refuse_unknown(options, {view.name for view in views})
    bounds = {**MAX_AGE_H, **options.max_age_h}
    answer: dict[str, Any] = {"now": now.isoformat(), "views": {}}
    for view in views:
        mark = read_watermark(workspace, view.name)
        watermark = mark.moment if mark is not None else None
        newest = _newest_source_row(workspace, view.name)
        of_view = age(watermark, now, bound_of(view.name, bounds))
        answer["views"][view.name] = {
            "watermark": _text(watermark),
            "newest_source_row": _text(newest),
            "behind_h": _behind_h(watermark, newest, now),
            **_figures(of_view),
        }
    answer["stale"] = [name for name, figures in answer["views"].items() if figures["stale"]]
    if options.user is not None:
        user = resolve_user(workspace, options.user)
        user_bounds = {**MAX_USER_AGE_H, **options.max_user_age_h}
        rows = {
            view.name: age(
                _online_event_time(store, view, user.number), now, user_bounds.get(view.name)
            )
            for view in views
            if view.join_keys == [schema.USER_ID]
        }
        answer["user"] = {
            "user_id": user.number,
            "views": {
                name: {"event_time": _text(of_row.at), **_figures(of_row)}
                for name, of_row in rows.items()
            },
            "stale": [name for name, of_row in rows.items() if of_row.stale],
        }
    return answer


def _refuse_unknown(options: FreshnessOptions, views: set[str]) -> None:
    for bounds in (options.max_age_h, options.max_user_age_h):
        unknown = sorted(set(bounds) - views - set(MAX_AGE_H))
        if unknown:
            raise InputError(
                f"max_age_h names {unknown}; the feature store has {sorted(views)}; correct the "
                "name, or run `crescendo publish`"
            )


def _newest_source_row(workspace: Workspace, view: str) -> datetime | None:
    """The largest event_timestamp of the source, from the files' footers: no row is read."""
    newest = None
    for path in parquet_files(workspace.feature_source(view)):
        metadata = pq.read_metadata(path)
        column = metadata.schema.to_arrow_schema().get_field_index(schema.EVENT_TIMESTAMP)
        for group in range(metadata.num_row_groups):
            statistics = metadata.row_group(group).column(column).statistics
            if statistics is not None and statistics.has_min_max:
                newest = max(newest or statistics.max, statistics.max)
    return newest


def _behind_h(watermark: datetime | None, newest: datetime | None, now: datetime) -> float | None:
    """At most so many hours of the source's rows, visible by now, are not online; None: all are."""
    if watermark is None:
        return None
    if newest is None:
        return 0.0
    return max((min(newest, now) - watermark) / HOUR, 0.0)


def _online_event_time(store: Any, view: Any, user_id: int) -> datetime | None:
    """Feast time of the user's online row. A row that is not there has none, or that of 1970."""
    response = store.get_online_features(
        features=[f"{view.name}:{view.features[0].name}"], entity_rows=[{schema.USER_ID: user_id}]
    ).proto
    names = list(response.metadata.feature_names.val)
    stamp = response.results[names.index(view.features[0].name)].event_timestamps[0]
    moment = stamp.ToDatetime(tzinfo=UTC)
    return moment if moment.timestamp() > 0 else None


def _figures(of: Age) -> dict[str, Any]:
    figures = asdict(of)
    del figures["at"]
    return figures


def _text(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment is not None else None

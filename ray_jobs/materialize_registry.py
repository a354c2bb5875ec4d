"""What Feast's registry knows of a materialization: `feast ui` and its freshness read it there.

Feast appends an interval to the view at every run, for ever; here the intervals that touch become
one. The file registry is written as a whole from a cached copy, so the copy is read anew first.
"""

from collections.abc import Iterable
from datetime import datetime

from feast import FeatureStore
from feast.infra.registry.registry import Registry
from feast.infra.registry.sql import SqlRegistry

Interval = tuple[datetime, datetime]


def record_interval(store: FeatureStore, view_name: str, start: datetime, end: datetime) -> None:
    """Records that (start, end] of the view is online; the view is then available online."""
    store.refresh_registry()
    registry, project = store.registry, store.project
    view = registry.get_feature_view(view_name, project)
    merged = merge_intervals([*view.materialization_intervals, (start, end)])
    if isinstance(registry, Registry):
        registry.apply_materialization(view, project, start, end, commit=False)
        for stored in registry.proto().feature_views:
            if (stored.spec.name, stored.spec.project) == (view_name, project):
                del stored.meta.materialization_intervals[:]
                for first, last in merged:
                    interval = stored.meta.materialization_intervals.add()
                    interval.start_time.FromDatetime(first)
                    interval.end_time.FromDatetime(last)
        registry.commit()
        return
    registry.apply_materialization(view, project, start, end)
    if isinstance(registry, SqlRegistry):  # others offer no way to replace the intervals
        view = registry.get_feature_view(view_name, project)
        view.materialization_intervals = merged
        registry.apply_feature_view(view, project)


def merge_intervals(intervals: Iterable[Interval]) -> list[Interval]:
    """The same moments in the fewest intervals, in order."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged

"""Which part of a source a run reads: what came since the watermark, or all of it, and why."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from feast import FeatureStore, FeatureView, RepoConfig

from feature_repo import schema
from feature_repo.store_settings import hide_passwords
from feature_repo.stores.packed_store import PackedOnlineStore
from ray_jobs.materialize_options import MaterializeOptions
from ray_jobs.materialize_source import ViewSource
from ray_jobs.watermarks import EPOCH, Settled, Watermark


@dataclass(frozen=True, kw_only=True)
class Range:
    """What a run reads, and why."""

    start: datetime
    end: datetime
    reason: str
    late_rows: int = 0


def range_of(
    store: FeatureStore,
    online: PackedOnlineStore,
    source: ViewSource,
    before: Watermark | None,
    identity: str,
    as_of: datetime,
    options: MaterializeOptions,
) -> Range:
    """From where to read: the whole source unless all that came before is known to be online."""

    def whole(reason: str, late_rows: int = 0) -> Range:
        return Range(start=EPOCH, end=as_of, reason=reason, late_rows=late_rows)

    if before is None:
        return whole("first time")
    settled = before.settled
    if source.files != before.source:
        settled = source.settled(datetime.fromisoformat(before.settled.until))
    late_rows = max(0, settled.rows - before.settled.rows)
    if options.full or options.replace:
        return whole("asked for", late_rows)
    if before.store != identity:
        return whole("another store, or other fields", late_rows)
    if settled != before.settled:
        return whole(_change(before.settled, settled), late_rows)
    held = online.count_rows(store.config, source.view)
    if held < before.online:
        return whole(f"the online store holds {held} of {before.online} rows")
    bound = before.moment - timedelta(hours=options.late_bound_h)
    # A bound that was raised does not reach back before what was counted as settled.
    start = max(EPOCH, min(bound, datetime.fromisoformat(before.settled.until)))
    return Range(start=start, end=max(as_of, before.moment), reason="since the watermark")


def _change(before: Settled, now: Settled) -> str:
    if now.rows > before.rows:
        return f"{now.rows - before.rows} rows came later than the lateness bound"
    if now.rows < before.rows:
        return f"the source lost {before.rows - now.rows} rows: --replace takes them out online"
    return "the source has other rows"


def settled_until(end: datetime, options: MaterializeOptions) -> datetime:
    """The moment up to which a source is not expected to change any more."""
    return max(EPOCH, end - timedelta(hours=options.late_bound_h))


def store_identity(config: RepoConfig, view: FeatureView) -> str:
    """Which online store holds a view, and in which form; no password is in it."""
    online = config.online_store
    place = getattr(online, "connection_string", None) or getattr(online, "path", "")
    fields = ", ".join(f"{field.name} {field.dtype}" for field in view.features)
    length = view.tags.get(schema.SEQUENCE_LENGTH_TAG, "")
    return f"{online.type} {hide_passwords(str(place))}; {fields}; {length}"

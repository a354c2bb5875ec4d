"""Live events: checked, safe in the journal, then merged into their users' online rows.

    live = LiveEvents(workspace, open_store(workspace))
    receipts = live.take([LiveEvent(event_id=1, user_id=7, ...)])

An event is told apart by its `event_id`, which says the same thing for ever: given again, in any
order, from any number of writers, it changes nothing. A listen (schema.LISTEN_ACTIONS) is in the
user's row when its receipt says `accepted`, and the next ranking reads it; `fold` later brings
every event into the log, from which the same row is built. A skip enters no sequence.

Raised by `take`: OSError, when the journal's disk takes nothing; then nothing was answered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import numpy as np
from feast import FeatureStore
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from feature_repo.behind import EPOCH
from feature_repo.errors import InputError
from feature_repo.event_journal import append_records
from feature_repo.journal_files import Record
from feature_repo.live_rows import OnlineRows
from feature_repo.schema import ACTIONS
from feature_repo.tombstones import TombstoneList
from feature_repo.workspace import Workspace

MICROSECOND = timedelta(microseconds=1)
EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)
"""No listening log is older; as in `ray_jobs.contract_checks`."""
MAX_AHEAD = timedelta(seconds=60)
"""How far a client's clock may be ahead of ours. Such a listen is online at once, while a
training row sees it only from its own time on: a minute's difference at most."""


def _known_action(action: str) -> str:
    if action not in ACTIONS:
        raise ValueError(f"expected one of {', '.join(ACTIONS)}")
    return action


def _spelled_out(moment: Any) -> Any:
    if isinstance(moment, str | datetime):
        return moment
    raise ValueError("expected ISO text with a time zone: a number does not say its unit")


Int64 = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]


class LiveEvent(BaseModel):
    """One event as a client gives it: the contract's columns but `ingested_at`, which is ours."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    event_id: Int64
    user_id: Int64
    track_id: Int64
    event_timestamp: Annotated[AwareDatetime, BeforeValidator(_spelled_out)]
    action: Annotated[str, AfterValidator(_known_action)]
    played_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    session_id: Int64 | None = None


Status = Literal["accepted", "pending", "rejected"]


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What became of one event.

    accepted   safe, and to be seen by the next ranking if it is a listen
    pending    safe; the online store does not answer, and gets it as soon as it does
    rejected   nothing of it was kept; `reason` says why
    """

    event_id: int
    status: Status
    reason: str | None = None


class LiveEvents:
    """Takes events for one workspace. One a process; its threads may call at the same time."""

    def __init__(self, workspace: Workspace, store: FeatureStore) -> None:
        """InputError if the online store's rows are not packed, ArtifactError before a publish."""
        if workspace.is_read_only:
            raise InputError(
                f"{workspace.location} is open for reading only, so its journal would be lost; "
                "give the events to `crescendo push`"
            )
        self._workspace = workspace
        self._forgotten = TombstoneList(workspace)
        self.online = OnlineRows(workspace, store)

    def take(self, events: Sequence[LiveEvent]) -> list[Receipt]:
        """One receipt an event, in their order. Returns once what it says is true."""
        reasons = self._reasons(events)
        kept, again = [], set()
        for event, reason in zip(events, reasons, strict=True):
            if reason is None and event.event_id not in again:
                kept.append(event)
                again.add(event.event_id)
        records = [_record(event) for event in kept]
        append_records(self._workspace, records)
        online = self.online.merge_records(records)
        status: Status = "accepted" if online else "pending"
        return [
            Receipt(event_id=event.event_id, status=status)
            if reason is None
            else Receipt(event_id=event.event_id, status="rejected", reason=reason)
            for event, reason in zip(events, reasons, strict=True)
        ]

    def _reasons(self, events: Sequence[LiveEvent]) -> list[str | None]:
        """Why each event is rejected, None where it is not."""
        latest = datetime.now(UTC) + MAX_AHEAD
        forgotten = self._forgotten.now().hidden(
            np.array([event.user_id for event in events], np.int64),
            np.array([event.event_id for event in events], np.int64),
            np.array([_microseconds(event.event_timestamp) for event in events], np.int64),
        )
        first: dict[int, LiveEvent] = {}
        reasons: list[str | None] = []
        for event, is_forgotten in zip(events, forgotten, strict=True):
            if event.event_timestamp < EARLIEST:
                reasons.append("event_timestamp_out_of_range")
            elif event.event_timestamp > latest:
                reasons.append("event_timestamp_in_the_future")
            elif is_forgotten:
                reasons.append("forgotten")
            elif first.setdefault(event.event_id, event) != event:
                reasons.append("event_id_of_another_event")
            else:
                reasons.append(None)
        return reasons

    def close(self) -> None:
        """Ends the retries of this process. What is pending is on the disk for the next."""
        self.online.close()


def _record(event: LiveEvent) -> Record:
    """The event as the journal has it, `ingested_at` null."""
    return {
        "event_id": event.event_id,
        "user_id": event.user_id,
        "track_id": event.track_id,
        "event_timestamp": _microseconds(event.event_timestamp),
        "action": event.action,
        "played_ratio": event.played_ratio,
        "session_id": event.session_id,
        "ingested_at": None,
    }


def _microseconds(moment: datetime) -> int:
    return (moment - EPOCH) // MICROSECOND

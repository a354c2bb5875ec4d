"""Forgets a user, or single events, everywhere, and proves it by searching.

    crescendo forget --user USER
    crescendo forget --event EVENT_ID [--event EVENT_ID]...

Takes their rows out of the online store, the event journal, the tables with their rejected rows and
maps of ids, feature sources, training sets, test scores, served reads, the demo's truth and the
logs, deletes reports that name the user, and writes tombstones (`feature_repo/tombstones.py`) that
keep late deliveries out. Then everything is searched: what is still found is an error. Rows of
others keep their values and order, and a changed artifact its id and age. A run that was killed is
finished by the next one.

What stays: counts over all users (`track_stats`, the training counts of tracks), vectors of
co-listening (`colistening.py`) and codebooks fitted on them, until they are made again, and what a
model has learned until it is trained again.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo import event_journal, schema, tombstones
from feature_repo.artifacts import MANIFEST, parquet_files, write_json
from feature_repo.errors import ArtifactError, InputError
from feature_repo.scratch import only_writer
from feature_repo.workspace import Workspace
from ray_jobs import watermarks
from ray_jobs.forget_files import artifacts, end_what_was_cut_off, remove, search
from ray_jobs.forget_ids import NUMBER_PREFIX, resolve_user
from ray_jobs.forget_online import EPOCH, OnlineRows
from ray_jobs.forget_plan import Plan, one_at_a_time, unfinished
from ray_jobs.progress import log, step

PASSES = 3
"""A running job or server may write a row while it is being forgotten; the next pass takes it."""
ONLINE, JOURNAL = "online", "journal"


@dataclass(frozen=True, kw_only=True)
class ForgetOptions:
    """Either a user or events."""

    user: str | None = None
    """The user's number, or the id that the source gave; `id:7` is always the number."""
    event_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if (self.user is None) == (not self.event_ids):
            raise InputError(
                f"user is {self.user!r} and event_ids are {list(self.event_ids)}; expected either "
                "a user or events"
            )


def forget(workspace: Workspace, options: ForgetOptions) -> dict[str, Any]:
    """Returns `stores` (rows removed, and rows found afterwards, which is 0), their sum `rows`,
    `sources_elsewhere`, which views to `recount`, `not_searched` (files by suffix) and `seconds`.

    Names nobody: the answer may be kept. Raises InputError for an unknown user or a store that
    cannot delete one, before anything is changed; ArtifactError if something is left.
    """
    started = time.monotonic()
    with one_at_a_time(workspace), _no_materialization(workspace):
        online = _open_online(workspace)
        answer: dict[str, Any] = {}
        interrupted = unfinished(workspace)
        if interrupted is not None:
            log.warning("finishing the forgetting that was cut off")
            answer = _carry_out(workspace, interrupted, online)
        if interrupted is None or not _asks_for(options, interrupted):
            answer = _anew(workspace, options, online)
    return {**answer, "seconds": round(time.monotonic() - started, 1)}


@contextmanager
def _no_materialization(workspace: Workspace) -> Iterator[None]:
    """Refuses (InputError) while one runs: it may hold rows that are still to go online."""
    folder = watermarks.folder(workspace)
    folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder):
        yield


def _anew(
    workspace: Workspace, options: ForgetOptions, online: OnlineRows | None
) -> dict[str, Any]:
    if options.user is None:
        plan = _plan_events(workspace, options, online)
    elif _is_gone(workspace, options.user):
        return {"stores": {}, "rows": 0, "already_forgotten": True}
    else:
        plan = _plan_user(workspace, options.user)
    plan.save(workspace)
    return _carry_out(workspace, plan, online)


def _asks_for(options: ForgetOptions, plan: Plan) -> bool:
    """True where the plan is what the options ask for."""
    if options.user is None:
        return plan.user_id is None and set(plan.event_ids) == set(options.event_ids)
    number = options.user.removeprefix(NUMBER_PREFIX)
    return options.user == plan.source_id or number == str(plan.user_id)


def _open_online(workspace: Workspace) -> OnlineRows | None:
    """The online store; None for a workspace that has no feature store yet."""
    if not (workspace.root / "feature_store.yaml").exists():
        return None
    with step("import feast"):
        from feature_repo.store import open_store
    return OnlineRows(open_store(workspace))


def _is_gone(workspace: Workspace, user: str) -> bool:
    """True for a source's id that was forgotten: the map does not know it any more."""
    if not tombstones.read_tombstones(workspace).covers(user):
        return False
    try:
        resolve_user(workspace, user)
    except InputError:
        return True
    return False


def _plan_user(workspace: Workspace, name: str) -> Plan:
    user = resolve_user(workspace, name)
    events = _log_rows(workspace, "user_id", [user.number])
    # A log may run ahead of this machine's clock.
    newest_us = pc.max(events["event_timestamp"].cast(pa.int64())).as_py() or 0
    return Plan(
        user_id=user.number,
        source_id=user.source_id,
        until_us=max(int(time.time() * 1e6), newest_us),
        event_ids=sorted(set(events["event_id"].to_pylist())),
    )


def _plan_events(workspace: Workspace, options: ForgetOptions, online: OnlineRows | None) -> Plan:
    if online is not None:
        online.refuse_unless_packed()
    rows = _log_rows(workspace, "event_id", list(options.event_ids))
    happened_us, arrived_us = (
        rows[name].cast(pa.int64()) for name in ("event_timestamp", "ingested_at")
    )
    visible_us = pc.max_element_wise(happened_us, arrived_us)  # a null arrival is no later one
    named = rows.select(["event_id", "user_id", "track_id"]).append_column("visible_us", visible_us)
    return Plan(
        user_id=None,
        source_id=None,
        until_us=int(time.time() * 1e6),
        event_ids=sorted(set(options.event_ids)),
        events=named.to_pylist(),
    )


def _carry_out(workspace: Workspace, plan: Plan, online: OnlineRows | None) -> dict[str, Any]:
    """Tombstones, then passes of removing until a search finds nothing. Ends the plan."""
    if plan.user_id is not None:
        names: list[int | str] = [plan.user_id]
        if plan.source_id is not None:
            names.append(plan.source_id)
        tombstones.forget_users(workspace, names, plan.until_us)
    else:
        tombstones.forget_events(workspace, plan.event_ids)
    with step("end what was cut off"):
        end_what_was_cut_off(workspace)
    plan.remember(workspace)
    for _ in range(PASSES):
        left, not_searched = _pass(workspace, plan, online)
        if not left:
            break
    if left:
        raise ArtifactError(
            f"rows to forget were found after {PASSES} passes, in {dict(left)}: a running job or "
            "server writes them again; stop it and run `crescendo forget` again"
        )
    _renew_parents(workspace, plan)
    answer = {
        "stores": {
            store: {"removed": rows, "found": 0} for store, rows in sorted(plan.removed.items())
        },
        "rows": sum(plan.removed.values()),
        "sources_elsewhere": online.elsewhere(workspace) if online is not None else [],
        "recount": [schema.TRACK_STATS] + ([schema.USER_STATS] if plan.user_id is None else []),
        "not_searched": dict(sorted(not_searched.items())),
    }
    plan.done(workspace)
    return answer


def _pass(
    workspace: Workspace, plan: Plan, online: OnlineRows | None
) -> tuple[Counter[str], Counter[str]]:
    """Removes once from every store; what a search finds afterwards, and what it cannot read."""
    users = [plan.user_id] if plan.user_id is not None else []
    if online is not None and users:
        with step("forget: online store"):
            plan.count(workspace, ONLINE, online.delete(users[0]))
    # The events of the log and of the journal are known before the first row goes.
    with step("forget: search"):
        found = search(workspace, plan.target())
        journal = _journal_rows(workspace, plan)
        if plan.user_id is not None:
            known = {*plan.event_ids, *found.event_ids, *journal["event_id"].to_pylist()}
            if known != set(plan.event_ids):
                plan.event_ids = sorted(known)
                plan.save(workspace)
                found = search(workspace, plan.target())
    with step("forget: files", files=len(found.rows) + len(found.texts)):
        event_ids = [] if users else plan.event_ids
        removed = event_journal.remove(workspace, user_ids=users, event_ids=event_ids)
        plan.count(workspace, JOURNAL, removed)
        remove(workspace, plan.target(), found, plan.made_at)
        for store, rows in found.by_store(workspace.root).items():
            plan.count(workspace, store, rows)
    return _left(workspace, plan, online)


def _left(
    workspace: Workspace, plan: Plan, online: OnlineRows | None
) -> tuple[Counter[str], Counter[str]]:
    with step("forget: search again"):
        found = search(workspace, plan.target())
        left = found.by_store(workspace.root)
        left[JOURNAL] = len(_journal_rows(workspace, plan))
        if online is not None and plan.user_id is not None:
            left[ONLINE] = online.found(plan.user_id)
        elif online is not None:
            users = sorted({event["user_id"] for event in plan.events})
            rewritten = online.rebuild(workspace, users)
            plan.removed.setdefault(ONLINE, rewritten)
            left[ONLINE] = online.found_events(users, plan.event_ids)
    return +left, found.not_searched


def _renew_parents(workspace: Workspace, plan: Plan) -> None:
    """The sources of users' views now are what `sequences` makes of the log as it is now.

    Those of tracks are not: they count what is gone, and name the log that they were made from.
    """
    from ray_jobs.sequences import events_id

    if plan.log_before is None or not parquet_files(workspace.events):
        return
    now = events_id(workspace)
    exact = [schema.USER_SEQUENCE] + ([schema.USER_STATS] if plan.user_id is not None else [])
    for name, manifest in artifacts(workspace):
        if (
            manifest.kind == "feature_source"
            and manifest.id in exact
            and manifest.parents.get("events") == plan.log_before != now
        ):
            manifest.parents["events"] = now
            write_json(workspace.root / name / MANIFEST, asdict(manifest))


def _journal_rows(workspace: Workspace, plan: Plan) -> pa.Table:
    """The journal's records about the target, folded or not."""
    events = event_journal.since(workspace, EPOCH)
    if plan.user_id is not None:
        return events.filter(pc.equal(events["user_id"], plan.user_id))
    wanted = pa.array(plan.event_ids, pa.int64())
    return events.filter(pc.is_in(events["event_id"], wanted))


def _log_rows(workspace: Workspace, column: str, values: list[int]) -> pa.Table:
    """Events of the log and the journal whose `column` is one of `values`: schema.EVENTS."""
    wanted = pa.array(values, pa.int64())
    events = event_journal.since(workspace, datetime(1970, 1, 1, tzinfo=UTC))
    tables = [events.filter(pc.is_in(events[column], wanted))]
    if parquet_files(workspace.events):
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.register("wanted", pa.table({"id": wanted}))
            sql = f"SELECT * FROM '{workspace.events}/*.parquet' SEMI JOIN wanted ON {column} = id"
            tables.append(connection.sql(sql).to_arrow_table().cast(schema.EVENTS))
    return pa.concat_tables(tables)

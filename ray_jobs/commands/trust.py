"""Trust in the features: freshness, audit, replay, forget, retire."""

from datetime import datetime
from typing import Annotated, Any

import typer

from feature_repo.errors import InputError
from ray_jobs.commands.options import answer

Hours = Annotated[
    list[str] | None, typer.Option(help="VIEW=HOURS beside the default bounds; may be repeated.")
]


def freshness(
    context: typer.Context,
    user: Annotated[
        str | None, typer.Option(help="Also this user's rows: the number, or the source's id.")
    ] = None,
    max_age_h: Hours = None,
    max_user_age_h: Hours = None,
) -> None:
    """How old each view is, and a user's rows; what is older than its bound is named."""
    from ray_jobs.freshness import FreshnessOptions, freshness

    options = FreshnessOptions(
        user=user,
        max_age_h=_hours("max_age_h", max_age_h),
        max_user_age_h=_hours("max_user_age_h", max_user_age_h),
    )
    answer(freshness(context.obj, options))


def audit(
    context: typer.Context,
    view: Annotated[
        str | None, typer.Option(help="One view; all with served reads when not given.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="Only reads from this moment on.")] = None,
    until: Annotated[str | None, typer.Option(help="Only reads before this moment.")] = None,
    grace_s: Annotated[
        float, typer.Option(help="Seconds that an event may take to come online.")
    ] = 5.0,
    max_share: Annotated[
        float, typer.Option(help="Share of unequal reads above which the audit fails.")
    ] = 0.0,
) -> None:
    """Recomputes served feature vectors offline at the same moment and compares them."""
    from ray_jobs.audit import AuditOptions, audit

    options = AuditOptions(
        view=view,
        since=_moment("since", since),
        until=_moment("until", until),
        grace_s=grace_s,
        max_share=max_share,
    )
    _answer_of_a_check(audit(context.obj, options))


def replay(
    context: typer.Context,
    reads: Annotated[int, typer.Option(help="Rows read and audited.")] = 200_000,
    events: Annotated[
        int | None, typer.Option(help="The first events of the log only; all when not given.")
    ] = None,
    stores: Annotated[
        str | None, typer.Option(help="redis://HOST:PORT/DB; embedded SQLite when not given.")
    ] = None,
) -> None:
    """Replays the event log as a stream into a store of its own, and audits what was read."""
    from ray_jobs.replay import ReplayOptions, replay

    options = ReplayOptions(reads=reads, events=events, stores=stores)
    _answer_of_a_check(replay(context.obj, options))


def forget(
    context: typer.Context,
    user: Annotated[
        str | None, typer.Option(help="The user's number, or the id that the source gave.")
    ] = None,
    event: Annotated[
        list[int] | None, typer.Option(help="A single event instead; may be repeated.")
    ] = None,
) -> None:
    """Deletes a user, or single events, everywhere, and searches everything for what is left."""
    from ray_jobs.forget import ForgetOptions, forget

    answer(forget(context.obj, ForgetOptions(user=user, event_ids=tuple(event or ()))))


def retire(
    context: typer.Context,
    generation: Annotated[
        str | None, typer.Option(help="Generation to drop; every unused one when not given.")
    ] = None,
    release: Annotated[str | None, typer.Option(help="Release to drop instead.")] = None,
) -> None:
    """Drops generations that no release reads: views, online rows and feature sources."""
    from ray_jobs.retire import RetireOptions, retire

    answer(retire(context.obj, RetireOptions(generation=generation, release=release)))


def _answer_of_a_check(result: dict[str, Any]) -> None:
    answer(result)
    if not result["passed"]:
        raise typer.Exit(1)


def _hours(name: str, bounds: list[str] | None) -> dict[str, float]:
    try:
        return {view: float(hours) for view, hours in (b.split("=") for b in bounds or [])}
    except ValueError as error:
        raise InputError(f"{name} must be VIEW=HOURS, got {bounds}") from error


def _moment(name: str, text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError as error:
        raise InputError(f"{name} must be an ISO moment with its zone, got {text!r}") from error

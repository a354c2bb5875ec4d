"""The feature store: sequences, publish, push, materialize, schedule."""

from pathlib import Path
from typing import Annotated

import typer

from ray_jobs.commands.options import Generation, Length, answer, names


def sequences(
    context: typer.Context,
    length: Length = 20,
) -> None:
    """Listening log -> the sources of the sequence and statistics features."""
    from ray_jobs.sequences import SequenceOptions, sequences

    answer(sequences(context.obj, SequenceOptions(length=length)))


def publish(context: typer.Context, generation: Generation = None) -> None:
    """feast apply, then materialize every view and check what came online."""
    from ray_jobs.publish import publish

    answer(publish(context.obj, generation))


def push(
    context: typer.Context,
    path: Annotated[
        Path | None,
        typer.Option(help="JSON lines, CSV or parquet; standard input when not given."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Events of one sync to disk.")] = 200,
) -> None:
    """Events into the journal and, at once, into the users' online rows."""
    from ray_jobs.push import PushOptions, push

    answer(push(context.obj, PushOptions(path=path, batch=batch)))


def materialize(
    context: typer.Context,
    views: Annotated[
        str | None, typer.Option(help="Comma-separated; all that go online when not given.")
    ] = None,
    late_bound_h: Annotated[
        float, typer.Option(help="Hours before the watermark that are read again.")
    ] = 24,
    full: Annotated[bool, typer.Option("--full", help="Read the whole source.")] = False,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="The source is the truth: for sources that lost rows."),
    ] = False,
    remove_vanished: Annotated[
        bool,
        typer.Option("--remove-vanished", help="Remove rows whose entity the source has no more."),
    ] = False,
    chunk_rows: Annotated[int, typer.Option(help="Source rows of one chunk.")] = 50_000_000,
) -> None:
    """Brings the newest rows of the views online and checks that they are there."""
    from ray_jobs.materialize import MaterializeOptions, materialize

    options = MaterializeOptions(
        views=names(views) if views else (),
        late_bound_h=late_bound_h,
        full=full,
        replace=replace,
        remove_vanished=remove_vanished,
        chunk_rows=chunk_rows,
    )
    answer(materialize(context.obj, options))


def schedule(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Option(help="Schedule; ray_jobs/schedule.yaml when not given.")
    ] = None,
    once: Annotated[str | None, typer.Option(help="Run this job once, now, and end.")] = None,
) -> None:
    """Runs the nightly and the frequent jobs until it is interrupted."""
    from ray_jobs.schedule import ScheduleOptions, schedule

    result = schedule(context.obj, ScheduleOptions(file=file, once=once))
    answer(result)
    if result.get("status", "ok") != "ok":
        raise typer.Exit(1)

"""The feature store: sequences, publish."""

import typer

from ray_jobs.commands.options import Generation, Length, answer


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

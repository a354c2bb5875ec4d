"""Rankers: train, evaluate, study."""

from typing import Annotated

import typer

from models.ranker_config import MODELS
from ray_jobs.commands.options import (
    BatchSize,
    Epochs,
    Generation,
    Gpu,
    LabelRule,
    LearningRate,
    ModelId,
    Models,
    Seeds,
    Workers,
    answer,
    names,
    whole_numbers,
)


def train(
    context: typer.Context,
    model: Annotated[str, typer.Option(help=f"One of {', '.join(MODELS)}.")] = "mcca",
    generation: Generation = None,
    start_from: Annotated[
        str | None,
        typer.Option("--from", help="Model to begin with, after an aligned refit of its IDs."),
    ] = None,
    label_rule: LabelRule = "complete",
    features: Annotated[
        str, typer.Option(help="Numbers beside IDs: user, track, context; comma-separated.")
    ] = "",
    epochs: Epochs = 12,
    batch_size: BatchSize = 512,
    learning_rate: LearningRate = 3e-3,
    bf16: Annotated[bool, typer.Option("--bf16", help="Products in bfloat16.")] = False,
    embedding_width: Annotated[int, typer.Option(help="Width of every embedding.")] = 64,
    attention_hidden: Annotated[int, typer.Option(help="Hidden width of attention nets.")] = 64,
    tower_hidden: Annotated[str, typer.Option(help="Widths of the MLP.")] = "200,80",
    family: Annotated[
        str | None, typer.Option(help="din_sid: the ID family it sees; text by default.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="sim: listens that attention sees; 10 by default.")
    ] = None,
    search: Annotated[
        str | None, typer.Option(help="sim: soft (embeddings, the default) or hard (codes).")
    ] = None,
    heads: Annotated[int | None, typer.Option(help="transformer: 4 by default.")] = None,
    layers: Annotated[int | None, typer.Option(help="transformer: 2 by default.")] = None,
    code_start: Annotated[
        str, typer.Option(help="Code tables begin random, or from the codebooks' centroids.")
    ] = "random",
    workers: Workers = 1,
    gpu: Gpu = None,
    checkpoint_every_s: Annotated[
        float, typer.Option(help="Seconds between two checkpoints, at least.")
    ] = 60.0,
    seed: int = 0,
) -> None:
    """A training set from Feast, and a ranker trained on it by Ray Train."""
    from ray_jobs.impressions import ImpressionOptions
    from ray_jobs.train import TrainOptions, train

    options = TrainOptions(
        model=model,
        generation=generation,
        start_from=start_from,
        impressions=ImpressionOptions(label_rule=label_rule),
        features=names(features) if features else (),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        bf16=bf16,
        embedding_width=embedding_width,
        attention_hidden=attention_hidden,
        tower_hidden=whole_numbers("tower_hidden", tower_hidden),
        family=family,
        top_k=top_k,
        search=search,
        heads=heads,
        layers=layers,
        code_start=code_start,
        workers=workers,
        gpu=gpu,
        checkpoint_every_s=checkpoint_every_s,
        seed=seed,
    )
    answer(train(context.obj, options))


def evaluate(context: typer.Context, model_id: ModelId = None) -> None:
    """Scores a model's test part again."""
    from ray_jobs.evaluate import evaluate

    answer(evaluate(context.obj, model_id))


def study(
    context: typer.Context,
    models: Models = "din,mcca",
    question: Annotated[
        list[str] | None,
        typer.Option(
            help="quantizers, prefix, attention or collaborative, instead of --models; may be "
            "repeated."
        ),
    ] = None,
    family: Annotated[
        str, typer.Option(help="ID family that DIN is given, with --question.")
    ] = "text",
    seeds: Seeds = 3,
    parallel: Annotated[int, typer.Option(help="Runs trained at a time, by one worker each.")] = 1,
    generation: Generation = None,
    label_rule: LabelRule = "complete",
    epochs: Epochs = 12,
    batch_size: BatchSize = 512,
    learning_rate: LearningRate = 3e-3,
    workers: Workers = 1,
    gpu: Gpu = None,
) -> None:
    """Models, or named questions, x seeds on the same rows, with paired differences."""
    from ray_jobs.impressions import ImpressionOptions
    from ray_jobs.study import StudyOptions, study
    from ray_jobs.study_questions import QuestionOptions, answer_questions
    from ray_jobs.train import TrainOptions

    shared = TrainOptions(
        generation=generation,
        impressions=ImpressionOptions(label_rule=label_rule),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        workers=workers,
        gpu=gpu,
    )
    if question:
        asked = QuestionOptions(
            questions=tuple(question), seeds=seeds, parallel=parallel, family=family, train=shared
        )
        answer(answer_questions(context.obj, asked))
        return
    options = StudyOptions(models=names(models), seeds=seeds, parallel=parallel, train=shared)
    answer(study(context.obj, options))

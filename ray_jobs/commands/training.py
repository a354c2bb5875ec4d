"""Rankers: train, evaluate, study."""

from typing import Annotated

import typer

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
)


def train(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="mcca or din.")] = "mcca",
    generation: Generation = None,
    label_rule: LabelRule = "complete",
    epochs: Epochs = 12,
    batch_size: BatchSize = 512,
    learning_rate: LearningRate = 3e-3,
    workers: Workers = 1,
    gpu: Gpu = None,
    seed: int = 0,
) -> None:
    """A training set from Feast, and a ranker trained on it by Ray Train."""
    from ray_jobs.impressions import ImpressionOptions
    from ray_jobs.train import TrainOptions, train

    options = TrainOptions(
        model=model,
        generation=generation,
        impressions=ImpressionOptions(label_rule=label_rule),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        workers=workers,
        gpu=gpu,
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
    seeds: Seeds = 3,
    generation: Generation = None,
    label_rule: LabelRule = "complete",
    epochs: Epochs = 12,
    batch_size: BatchSize = 512,
    learning_rate: LearningRate = 3e-3,
    workers: Workers = 1,
    gpu: Gpu = None,
) -> None:
    """Many models x seeds on the same rows, with paired differences."""
    from ray_jobs.impressions import ImpressionOptions
    from ray_jobs.study import StudyOptions, study
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
    answer(study(context.obj, StudyOptions(models=names(models), seeds=seeds, train=shared)))

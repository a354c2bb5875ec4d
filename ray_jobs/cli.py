"""The `crescendo` command line.

Every command is also a function with the same options. Heavy imports happen inside the commands,
so that `crescendo --help` answers at once. The last line on standard output is one JSON object;
progress goes to standard error. Exit code 0; 2 for wrong options or input; 1 for a failure.
"""

import json
import os
import shlex
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from feature_repo.errors import InputError
from feature_repo.workspace import Workspace

app = typer.Typer(
    help="Semantic IDs, features, training and ranking for a music catalogue.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Generation = Annotated[str | None, typer.Option(help="Generation id; the newest when not given.")]
ModelId = Annotated[str | None, typer.Option(help="Model id; the newest when not given.")]
LabelRule = Annotated[str, typer.Option(help="complete, favourite, replayed or sampled_negatives.")]
Epochs = Annotated[int, typer.Option(help="Passes over the training part at most.")]
BatchSize = Annotated[int, typer.Option(help="Rows of one optimizer step, over all workers.")]
LearningRate = Annotated[float, typer.Option(help="Adam's learning rate.")]
Workers = Annotated[int, typer.Option(help="Ray Train workers.")]
Gpu = Annotated[
    bool | None,
    typer.Option("--gpu/--cpu", help="One CUDA device a worker; by default if there are enough."),
]
Levels = Annotated[int, typer.Option(help="Codes in an ID.")]
Codes = Annotated[int, typer.Option(help="Codes in a codebook.")]
Length = Annotated[int, typer.Option(help="Listens kept per user.")]
Models = Annotated[str, typer.Option(help="Comma-separated; the first is the baseline.")]
Seeds = Annotated[int, typer.Option(help="Runs of each model.")]
Source = Annotated[
    str,
    typer.Option(help="hetrec-spotify, 30music-subset, tiktok-mm, music4all, demo-world or table."),
]
SourcePath = Annotated[Path, typer.Option("--path", help="Folder of the source.")]
Mapping = Annotated[
    Path | None, typer.Option(help="Column mapping, a JSON file, for --source table.")
]
MaxRejected = Annotated[
    float, typer.Option(help="Share of unexpectedly rejected rows above which to stop.")
]


@app.callback()
def common(
    context: typer.Context,
    workspace: Annotated[
        Path, typer.Option(help="Folder that everything is read from and written to.")
    ] = Path("workspace"),
) -> None:
    from ray_jobs.progress import configure_logging

    configure_logging()
    context.obj = Workspace(workspace)


def answer(result: dict[str, Any]) -> None:
    """The command's last line: one JSON object."""
    typer.echo(json.dumps(result))


@app.command()
def ingest(
    context: typer.Context,
    source: Source,
    path: SourcePath,
    mapping: Mapping = None,
    max_rejected_share: MaxRejected = 0.05,
) -> None:
    """Source data -> the contract tables of tracks and events."""
    from ray_jobs.ingest import IngestOptions, ingest

    options = IngestOptions(
        source=source, path=path, mapping=mapping, max_rejected_share=max_rejected_share
    )
    answer(ingest(context.obj, options))


@app.command()
def embed(
    context: typer.Context,
    modality: Annotated[str, typer.Option(help="text, audio or another name.")],
    encoder: Annotated[
        str, typer.Option(help="spectral, vectors, or a Hugging Face encoder's package name.")
    ],
    encoder_path: Annotated[
        Path | None, typer.Option(help="Local folder of the Hugging Face encoder.")
    ] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Do the tracks again that failed.")
    ] = False,
) -> None:
    """Embedding vectors of the tracks that have none yet or have changed."""
    from ray_jobs.embed import EmbedOptions, embed

    options = EmbedOptions(
        modality=modality, encoder=encoder, encoder_path=encoder_path, retry_errors=retry_errors
    )
    answer(embed(context.obj, options))


@app.command()
def quantize(
    context: typer.Context,
    method: Annotated[str, typer.Option(help="psrq, rq_kmeans, vq, pq or rq_vae.")] = "psrq",
    modalities: Annotated[str, typer.Option(help="Comma-separated.")] = "text,audio",
    levels: Levels = 3,
    codes: Codes = 128,
    prefix_weight: Annotated[
        str, typer.Option(help="psrq: auto or a number; 1 is the paper.")
    ] = "auto",
    epochs: Annotated[int, typer.Option(help="rq_vae: passes over the tracks.")] = 100,
    balance: Annotated[
        float | None,
        typer.Option(help="Largest share of a code over the even share; not for rq_vae."),
    ] = None,
    collisions: Annotated[
        str | None,
        typer.Option(help="Tell apart tracks that share an ID: next_best or extra_level."),
    ] = None,
    sample_rows: Annotated[
        int | None, typer.Option(help="Fit on so many tracks, drawn by the seed.")
    ] = None,
    align_to: Annotated[
        str | None,
        typer.Option(help="Generation to start from, and whose codes to keep where it can."),
    ] = None,
    preprocess: Annotated[str, typer.Option(help="none, l2, standard or whiten.")] = "l2",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    workers: Annotated[
        int, typer.Option(help="psrq, rq_kmeans, vq: Ray Train workers that split the tracks.")
    ] = 1,
    seed: int = 0,
) -> None:
    """Fits the codebooks of all families and assigns a generation of semantic IDs."""
    from ray_jobs.quantize import quantize
    from ray_jobs.quantize_options import QuantizeOptions

    try:
        weight: Any = prefix_weight if prefix_weight == "auto" else float(prefix_weight)
    except ValueError as error:
        raise InputError(
            f"prefix_weight must be auto or a number, got {prefix_weight!r}"
        ) from error
    options = QuantizeOptions(
        method=method,
        modalities=_names(modalities),
        levels=levels,
        codes=codes,
        prefix_weight=weight,
        epochs=epochs,
        balance=balance,
        collisions=collisions,
        sample_rows=sample_rows,
        align_to=align_to,
        preprocess=preprocess,
        device=device,
        workers=workers,
        seed=seed,
    )
    answer(quantize(context.obj, options))


@app.command()
def assign(
    context: typer.Context,
    generation: Generation = None,
    error_ratio: Annotated[
        float, typer.Option(help="Warn if new tracks cost so many times what the fit's did.")
    ] = 1.25,
    tail_share: Annotated[
        float, typer.Option(help="Warn if so many cost more than 99% of the fit's.")
    ] = 0.05,
    usage_shift: Annotated[
        float, typer.Option(help="Warn if code usage differs by so many bits beyond chance.")
    ] = 0.05,
    least_tracks: Annotated[int, typer.Option(help="New tracks from which drift is judged.")] = 100,
) -> None:
    """IDs for tracks that have none, from a generation's frozen codebooks; warns of drift."""
    from ray_jobs.assign import assign
    from ray_jobs.drift import DriftLimits

    limits = DriftLimits(
        error_ratio=error_ratio,
        tail_share=tail_share,
        usage_shift=usage_shift,
        least_tracks=least_tracks,
    )
    answer(assign(context.obj, generation, limits))


@app.command()
def quality(
    context: typer.Context,
    generation: Generation = None,
    curve: Annotated[
        str | None,
        typer.Option(help="Prefix weights to compare, comma-separated, beside 0, 1 and auto."),
    ] = None,
    rows: Annotated[int, typer.Option(help="Tracks that the comparison is made on, at most.")] = (
        20_000
    ),
) -> None:
    """How good a generation's IDs are, beside RQ and the literal PSRQ: a table and a page."""
    from ray_jobs.quality import QualityOptions, quality
    from ray_jobs.report.quality_findings import print_quality

    try:
        weights = None if curve is None else tuple(float(weight) for weight in _names(curve))
    except ValueError as error:
        raise InputError(f"curve must be numbers, comma-separated, got {curve!r}") from error
    options = QualityOptions(generation=generation, curve=weights, rows=rows)
    result, families = quality(context.obj, options)
    print_quality(families)
    answer(result)


@app.command()
def sequences(
    context: typer.Context,
    length: Length = 20,
) -> None:
    """Listening log -> the sources of the sequence and statistics features."""
    from ray_jobs.sequences import SequenceOptions, sequences

    answer(sequences(context.obj, SequenceOptions(length=length)))


@app.command()
def publish(context: typer.Context, generation: Generation = None) -> None:
    """feast apply, then materialize every view and check what came online."""
    from ray_jobs.publish import publish

    answer(publish(context.obj, generation))


@app.command()
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


@app.command()
def evaluate(context: typer.Context, model_id: ModelId = None) -> None:
    """Scores a model's test part again."""
    from ray_jobs.evaluate import evaluate

    answer(evaluate(context.obj, model_id))


@app.command()
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
    answer(study(context.obj, StudyOptions(models=_names(models), seeds=seeds, train=shared)))


@app.command()
def run(
    context: typer.Context,
    source: Source,
    path: SourcePath,
    mapping: Mapping = None,
    max_rejected_share: MaxRejected = 0.05,
    levels: Levels = 3,
    codes: Codes = 128,
    length: Length = 20,
    label_rule: LabelRule = "complete",
    models: Models = "din,mcca",
    seeds: Seeds = 3,
    epochs: Epochs = 12,
    batch_size: BatchSize = 512,
    learning_rate: LearningRate = 3e-3,
    workers: Workers = 1,
    gpu: Gpu = None,
) -> None:
    """All steps on one source, from ingest to a live release and its report."""
    from ray_jobs.impressions import ImpressionOptions
    from ray_jobs.ingest import IngestOptions
    from ray_jobs.pipeline import PipelineOptions, run_pipeline
    from ray_jobs.quantize_options import QuantizeOptions
    from ray_jobs.report import print_study, report
    from ray_jobs.sequences import SequenceOptions
    from ray_jobs.study import StudyOptions
    from ray_jobs.train import TrainOptions

    shared = TrainOptions(
        impressions=ImpressionOptions(label_rule=label_rule),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        workers=workers,
        gpu=gpu,
    )
    options = PipelineOptions(
        ingest=IngestOptions(
            source=source, path=path, mapping=mapping, max_rejected_share=max_rejected_share
        ),
        quantize=QuantizeOptions(levels=levels, codes=codes),
        sequences=SequenceOptions(length=length),
        study=StudyOptions(models=_names(models), seeds=seeds, train=shared),
    )
    result = run_pipeline(context.obj, options)
    result["release"] = _release_best(context.obj, result["study"])
    result["report"] = report(context.obj)["path"]
    print_study(result["study"], ceiling=None)
    answer(result)


@app.command()
def demo(
    context: typer.Context,
    scale: Annotated[float, typer.Option(help="Listeners and events, as a factor.")] = 1.0,
    seeds: Seeds = 3,
    seed: Annotated[int, typer.Option(help="Seed of the world.")] = 0,
) -> None:
    """Everything on a small world of real tunes and simulated listeners."""
    from ray_jobs.demo import DemoOptions, demo
    from ray_jobs.demo_world.world import DemoWorldOptions
    from ray_jobs.report import print_study, report
    from ray_jobs.study import StudyOptions

    options = DemoOptions(
        world=DemoWorldOptions(scale=scale, seed=seed), study=StudyOptions(seeds=seeds)
    )
    result = demo(context.obj, options)
    result["release"] = _release_best(context.obj, result["study"])
    result["report"] = report(context.obj)["path"]
    print_study(result["study"], ceiling=result["ceiling"])
    answer(result)


@app.command()
def release(context: typer.Context, model_id: ModelId = None) -> None:
    """Checks that model, generation and features fit, and makes them the live release."""
    from serving.releases import make_release

    answer(make_release(context.obj, model_id))


@app.command()
def rollback(context: typer.Context) -> None:
    """Makes the release before the live one live again."""
    from serving.releases import rollback

    answer(rollback(context.obj))


@app.command()
def serve(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="HTTP port.")] = 8000,
    replicas: Annotated[int, typer.Option(help="Processes that rank.")] = 1,
) -> None:
    """Serves the live release until it is interrupted."""
    from serving.deployment import serve_until_signal
    from serving.releases import live_release

    live = live_release(context.obj)
    serve_until_signal(context.obj, host=host, port=port, replicas=replicas)
    answer({"release_id": live.release_id})


@app.command()
def rank(
    context: typer.Context,
    user: Annotated[int, typer.Option(help="User id.")],
    candidates: Annotated[str, typer.Option(help="Track ids, comma-separated.")],
) -> None:
    """Ranks candidates for a user with the live release, in this process."""
    from pydantic import ValidationError

    from serving.app import RankRequest
    from serving.app import rank as answer_rank
    from serving.ranker import ReleaseRanker
    from serving.releases import live_release

    try:
        request = RankRequest(
            user_id=user, candidates=[int(track) for track in candidates.split(",")]
        )
    except (ValidationError, ValueError) as error:
        raise InputError(f"candidates must be track ids, comma-separated: {error}") from error
    ranker = ReleaseRanker(context.obj, live_release(context.obj))
    answer(answer_rank(ranker, request).model_dump())


@app.command()
def report(context: typer.Context) -> None:
    """One self-contained HTML page about the workspace."""
    from ray_jobs.report import report

    answer(report(context.obj))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _release_best(workspace: Workspace, study: dict[str, Any]) -> dict[str, Any]:
    """Makes a model of the kind with the best mean validation AUC the live release."""
    from serving.releases import make_release

    best = max(study["models"].values(), key=lambda summary: summary["validation_auc"])
    return make_release(workspace, best["model_ids"][0])


def _in_this_workspace(message: str) -> str:
    """The commands that a message names, with the --workspace that this one was given."""
    for option, given in zip(sys.argv, sys.argv[1:], strict=False):
        if option == "--workspace" and "`crescendo --workspace" not in message:
            return message.replace("`crescendo ", f"`crescendo --workspace {shlex.quote(given)} ")
    return message


def main() -> None:
    """Entry point of the `crescendo` command."""
    code = 0
    try:
        app(standalone_mode=True)
    except InputError as error:
        typer.echo(f"error: {_in_this_workspace(str(error))}", err=True)
        code = 2
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything of ours is closed by now. A normal exit would let DuckDB's binding print pages
    # about objects that Feast's connection still holds.
    os._exit(code)


if __name__ == "__main__":
    main()

"""The `crescendo` command line.

Every command is also a function with the same options. Heavy imports happen inside the commands,
so that `crescendo --help` answers at once. The last line on standard output is one JSON object;
progress goes to standard error. Exit code 0; 2 for wrong options or input; 1 for a failure.
"""

import errno
import os
import sys
import traceback
from typing import Annotated, Any

import typer

from feature_repo.errors import InputError, RayUnavailableError, StoreUnavailableError
from feature_repo.workspace import Workspace
from ray_jobs.commands import features, ids, sequential, serving, training, trust
from ray_jobs.commands.options import (
    BatchSize,
    Codes,
    Epochs,
    Gpu,
    LabelRule,
    LearningRate,
    Length,
    Levels,
    Mapping,
    MaxRejected,
    Models,
    Seeds,
    Source,
    SourcePath,
    Workers,
    answer,
    in_this_workspace,
    names,
)

READ_ONLY = ("rank", "recommend", "serve", "load-test", "freshness")
"""Commands that leave a workspace in an object store as it is: they lock and publish nothing."""

app = typer.Typer(
    help="Semantic IDs, features, training and ranking for a music catalogue.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def common(
    context: typer.Context,
    workspace: Annotated[
        str,
        typer.Option(
            help="Folder that everything is read from and written to, or s3://BUCKET/PREFIX."
        ),
    ] = "workspace",
    stores: Annotated[
        str | None,
        typer.Option(
            help="redis://HOST:PORT/DB[?registry=postgresql://...][&project=NAME], or the path of "
            "a feature_store.yaml: from now on the workspace's stores."
        ),
    ] = None,
) -> None:
    from feature_repo.working_copy import working_copy
    from ray_jobs.progress import configure_logging

    configure_logging()
    read_only = context.invoked_subcommand in READ_ONLY
    # Closed, and with that published, when the command has ended well.
    context.obj = context.with_resource(working_copy(workspace, read_only=read_only))
    if stores is not None:
        from feature_repo.published_stores import set_stores

        made = set_stores(context.obj, stores)
        if made["changed"]:
            needed = "; run `crescendo publish`" if made["publish_needed"] else ""
            typer.echo(f"stores are now {made['stores']}{needed}", err=True)


# The commands below this list start serving or make releases; no other module may import serving.
for command in (
    ids.ingest,
    ids.convert_encoder,
    ids.embed,
    ids.quantize,
    ids.assign,
    ids.quality,
    features.sequences,
    features.publish,
    features.push,
    features.materialize,
    features.schedule,
    trust.freshness,
    trust.audit,
    trust.replay,
    trust.forget,
    trust.retire,
    training.train,
    training.evaluate,
    training.study,
    sequential.sasrec,
    sequential.train_mme_sid,
    sequential.score_users,
    sequential.collapse,
    sequential.forgetting,
    sequential.mme_study,
    serving.release,
    serving.promote,
    serving.withdraw,
    serving.rollback,
    serving.serve,
    serving.rank,
    serving.recommend,
    serving.load_test,
):
    app.command()(command)
app.add_typer(serving.tokens, name="token")


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
        study=StudyOptions(models=names(models), seeds=seeds, train=shared),
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
def report(context: typer.Context) -> None:
    """One self-contained HTML page about the workspace."""
    from ray_jobs.report import report

    answer(report(context.obj))


def _release_best(workspace: Workspace, study: dict[str, Any]) -> dict[str, Any]:
    """Makes a model of the kind with the best mean validation AUC the live release."""
    from serving.releases import make_release

    best = max(study["models"].values(), key=lambda summary: summary["validation_auc"])
    return make_release(workspace, best["model_ids"][0])


def _is_full(error: BaseException | None) -> bool:
    """Whether a disk or a quota is full, also where a worker of Ray says so, without the number."""
    full = (errno.ENOSPC, errno.EDQUOT)
    while error is not None:
        if isinstance(error, OSError) and (
            error.errno in full or any(os.strerror(code) in str(error) for code in full)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def main() -> None:
    """Entry point of the `crescendo` command."""
    code = 0
    try:
        app(standalone_mode=True)
    except InputError as error:
        typer.echo(f"error: {in_this_workspace(str(error))}", err=True)
        code = 2
    except (StoreUnavailableError, RayUnavailableError) as error:
        typer.echo(f"error: {in_this_workspace(str(error))}", err=True)
        code = 1
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except Exception as error:
        if _is_full(error):
            typer.echo(
                f"error: {str(error).splitlines()[-1]}; make room on the workspace's disk, or on "
                "that of temporary files, and give the same command again: what was finished is "
                "kept, and nothing half-written is left",
                err=True,
            )
        else:
            traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything of ours is closed by now. A normal exit would let DuckDB's binding print pages
    # about objects that Feast's connection still holds.
    os._exit(code)


if __name__ == "__main__":
    main()

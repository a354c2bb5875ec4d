"""Releases, the server, requests from the shell, and the server's tokens."""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from feature_repo.errors import InputError
from ray_jobs.commands.options import ModelId, answer

Request = TypeVar("Request")
tokens = typer.Typer(help="Bearer tokens of a server.", no_args_is_help=True)


def release(
    context: typer.Context,
    model_id: ModelId = None,
    retriever: Annotated[
        str | None, typer.Option(help="Trained mme_sid model that proposes tracks to recommend.")
    ] = None,
    canary: Annotated[
        float | None, typer.Option(help="Serve it to this share of the users only.")
    ] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Show it to nobody; score with it and compare.")
    ] = False,
) -> None:
    """Checks that model, generation and features fit, and makes them the live release."""
    from serving.releases import make_release

    answer(
        make_release(
            context.obj,
            model_id,
            retriever_model_id=retriever,
            canary_share=canary,
            shadow=shadow,
        )
    )


def promote(context: typer.Context) -> None:
    """Makes the canary the live release."""
    from serving.releases import promote

    answer(promote(context.obj))


def withdraw(context: typer.Context) -> None:
    """Drops canary and shadow."""
    from serving.releases import withdraw

    answer(withdraw(context.obj))


def rollback(context: typer.Context) -> None:
    """Makes the release before the live one live again, for all users: drops a canary."""
    from serving.releases import rollback

    answer(rollback(context.obj))


def serve(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="HTTP port.")] = 8000,
    replicas: Annotated[int, typer.Option(help="Processes that rank.")] = 1,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            help="Ray Serve behind HAProxy, which listens on ALL interfaces: wants tokens.",
        ),
    ] = False,
    uvicorn: Annotated[
        bool, typer.Option("--uvicorn", help="One process without Ray; listens on --host alone.")
    ] = False,
    certificate: Annotated[
        Path | None, typer.Option(help="TLS certificate (PEM), with --uvicorn.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    grpc_port: Annotated[
        int | None, typer.Option(help="Rankings over gRPC too, with --uvicorn.")
    ] = None,
    log_share: Annotated[
        float, typer.Option(help="Share of users whose reads are kept for `audit`.")
    ] = 0.0,
    remote_poll_s: Annotated[
        float, typer.Option(help="Seconds between looks at an s3:// workspace for changes.")
    ] = 5.0,
) -> None:
    """Serves the live release until it is interrupted."""
    from serving.releases import live_release
    from serving.remote_watch import following

    if not 0 <= log_share <= 1:
        raise InputError(f"log_share must lie between 0 and 1, got {log_share}")
    if uvicorn and (fast or replicas != 1):
        raise InputError("uvicorn is one process without Ray: leave --fast and --replicas out")
    for name, given in (("certificate", certificate), ("key", key), ("grpc_port", grpc_port)):
        if given is not None and not uvicorn:
            raise InputError(
                f"{name} is for --uvicorn: Ray Serve's fast proxy passes on plain HTTP alone"
            )
    live = live_release(context.obj)
    serve_on: Callable[..., None]
    if uvicorn:
        from serving.uvicorn_server import serve_with_uvicorn

        serve_on = partial(
            serve_with_uvicorn, certificate=certificate, key=key, grpc_port=grpc_port
        )
    else:
        from serving.deployment import serve_until_signal

        serve_on = partial(serve_until_signal, replicas=replicas, fast=fast)
    with following(context.obj, every_s=remote_poll_s):
        serve_on(context.obj, host=host, port=port, logged_share=log_share)
    answer({"release_id": live.release_id})


def rank(
    context: typer.Context,
    user: Annotated[int, typer.Option(help="User id.")],
    candidates: Annotated[str, typer.Option(help="Track ids, comma-separated.")],
) -> None:
    """Ranks candidates for a user with the live release, in this process."""
    from serving.ranker import ReleaseRanker
    from serving.ranking_routes import rank_response
    from serving.releases import live_release
    from serving.schemas import RankRequest

    request = _request(RankRequest, user_id=user, candidates=_ids("candidates", candidates))
    live = live_release(context.obj)
    ranking = ReleaseRanker(context.obj, live).rank(request.user_id, request.candidates)
    answer(json.loads(rank_response(live.release_id, request.user_id, ranking, [])))


def recommend(
    context: typer.Context,
    user: Annotated[int | None, typer.Option(help="User id.")] = None,
    history: Annotated[
        str | None,
        typer.Option(help="Instead of a user: track ids, comma-separated, newest last."),
    ] = None,
    count: Annotated[int, typer.Option(help="Tracks.")] = 20,
    max_per_artist: Annotated[int | None, typer.Option(help="Tracks of one artist.")] = None,
    max_per_prefix: Annotated[
        int | None, typer.Option(help="Tracks with the same first code of the joint ID.")
    ] = None,
    include_seen: Annotated[
        bool, typer.Option("--include-seen", help="Tracks of the history too.")
    ] = False,
) -> None:
    """Finds candidates for a user and ranks them with the live release, in this process."""
    from serving.ranker import ReleaseRanker
    from serving.ranking_routes import recommend_response
    from serving.recommendation import choose, retrieve
    from serving.releases import live_release
    from serving.schemas import RecommendRequest
    from serving.user_rows import made_up_user

    request = _request(
        RecommendRequest,
        user_id=user,
        history=None if history is None else _ids("history", history),
        count=count,
        max_per_artist=max_per_artist,
        max_per_prefix=max_per_prefix,
        include_seen=include_seen,
    )
    ranker = ReleaseRanker(context.obj, live_release(context.obj))
    ranker.load_retriever()
    if request.user_id is None:
        listener = made_up_user(request.history or [], time.time_ns() // 1000)
    else:
        (listener,) = ranker.user_rows.read([request.user_id])
    found = retrieve(ranker, listener, request)
    ranking = ranker.ranking(listener, found.track_ids_C.tolist())
    shown = choose(ranker, found, ranking, request)
    answer(recommend_response(ranker, request.user_id, ranking, shown, []))


def load_test(
    context: typer.Context,
    url: Annotated[str, typer.Option(help="Of the server: http://HOST:PORT or https://.")],
    rate: Annotated[float, typer.Option(help="Requests a second, at random moments.")] = 100.0,
    seconds: Annotated[float, typer.Option(help="How long, after the warm-up.")] = 60.0,
    warm_up_s: Annotated[float, typer.Option(help="Of the same load, not counted.")] = 5.0,
    candidates: Annotated[int, typer.Option(help="Of each request.")] = 500,
    users: Annotated[
        str | None, typer.Option(help="Ids A-B or a file of ids; the workspace's when not given.")
    ] = None,
    tracks: Annotated[
        str | None, typer.Option(help="Ids A-B or a file of ids; the release's when not given.")
    ] = None,
    objective: Annotated[
        list[str] | None, typer.Option(help="p99=20 (milliseconds); may be repeated.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="Bearer token.", envvar="CRESCENDO_TOKEN")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of arrivals and requests.")] = 0,
) -> None:
    """Open-loop load on a server: latency from the scheduled time, errors, and a verdict."""
    from serving.load_client import Target
    from serving.load_report import Objective
    from serving.load_test import LoadOptions, load_test

    options = LoadOptions(
        target=Target(url=url, token=token),
        rate=rate,
        seconds=seconds,
        warm_up_s=warm_up_s,
        objectives=tuple(Objective.parse(text) for text in objective or ()),
        seed=seed,
    )
    report = load_test(context.obj, options, candidates=candidates, users=users, tracks=tracks)
    answer(report)
    if report["verdict"] in ("missed", "undecided"):
        raise typer.Exit(1)


@tokens.command("create")
def create_token(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="Who it is for.")],
    scope: Annotated[list[str], typer.Option(help="rank, write_events or administer; repeatable.")],
    requests_per_s: Annotated[float, typer.Option(help="Of each serving process.")] = 100.0,
    valid_days: Annotated[float | None, typer.Option(help="For ever when not given.")] = None,
) -> None:
    """Makes a token, and shows it this once."""
    from serving.tokens import create_token

    made = create_token(
        context.obj,
        name=name,
        scopes=scope,
        requests_per_s=requests_per_s,
        valid_days=valid_days,
    )
    answer(made)


@tokens.command("list")
def list_tokens(context: typer.Context) -> None:
    """The tokens' names, scopes and ends."""
    from serving.tokens import list_tokens

    answer(list_tokens(context.obj))


@tokens.command("revoke")
def revoke_token(
    context: typer.Context, name: Annotated[str, typer.Option(help="As it was created.")]
) -> None:
    """Removes a token; servers refuse it within a second."""
    from serving.tokens import revoke_token

    answer(revoke_token(context.obj, name=name))


def _request(form: type[Request], **fields: Any) -> Request:
    from pydantic import ValidationError

    try:
        return form(**fields)
    except ValidationError as error:
        reasons = [
            f"{'.'.join(str(part) for part in problem['loc']) or 'request'}: {problem['msg']}"
            for problem in error.errors()[:5]
        ]
        raise InputError("; ".join(reasons)) from error


def _ids(name: str, text: str) -> list[int]:
    try:
        return [int(track) for track in text.split(",") if track.strip()]
    except ValueError as error:
        raise InputError(f"{name} must be track ids, comma-separated, got {text!r}") from error

"""Runs the application on Ray Serve.

    crescendo serve --port 8000

One deployment holds features, model and HTTP routes: each further hop would cost milliseconds.
Ray's own daemons listen on all interfaces, whatever host is given here; on a machine that others
reach, close their ports with a firewall. `serving/uvicorn_server.py` serves without Ray.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import ReferenceType, ref

from fastapi import APIRouter, FastAPI

from feature_repo.errors import ArtifactError, InputError
from feature_repo.ray_start import connect_to_ray, names_a_cluster
from feature_repo.workspace import Workspace
from serving.listening import check_exposure, check_free
from serving.pressure import PressureOptions
from serving.releases import Release, live_release
from serving.request_log import json_logs
from serving.tokens import read_tokens, tokens_path

if TYPE_CHECKING:
    from serving.grpc_server import GrpcOptions

REPLICA_CPUS = 0.5
"""Fractional, so that a replica finds its place on a small machine."""
LOGICAL_CPUS = 8
SIGNAL_CHECK_S = 0.5
MAX_ONGOING = 512
"""Requests that Serve hands to a replica at once. The replica refuses by itself what it cannot
answer in time; those that Serve's default of 5 held back would wait where no deadline runs."""
FAST = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
"""Half a millisecond an empty request instead of eight. HAProxy's statistics and the replicas' own
ports listen on every interface whatever host is given, and all of it speaks plain HTTP: a
deployment puts it behind a network policy and an ingress that ends TLS (`deploy/`). Ray reads
these settings when it is imported."""
EVERY_INTERFACE = "0.0.0.0"


def load_app(
    workspace: Workspace,
    *,
    logged_share: float = 0.0,
    pressure: PressureOptions | None = None,
    grpc: "GrpcOptions | None" = None,
    only_loopback_names: bool = False,
    ray_names_requests: bool = False,
) -> FastAPI:
    """Loads the live release, warms it up and builds the application around it.

    From then on the application follows the workspace's releases (`serving.live_releases`).
    The last three are `create_app`'s.
    """
    import torch

    from serving.access import Access
    from serving.app import create_app
    from serving.background import switch_often
    from serving.catalogue_watch import CatalogueWatch
    from serving.live_releases import LiveReleases
    from serving.metrics import ServingMetrics
    from serving.ranker import ReleaseRanker
    from serving.ranking_service import RankingService
    from serving.request_log import RequestLog, RequestLogOptions
    from serving.tracing import Tracing

    torch.set_num_threads(1)  # replicas share the cores; one request is too small to split
    switch_often()
    metrics = ServingMetrics()

    newest: ReferenceType[ReleaseRanker] | None = None

    def load(release: Release) -> ReleaseRanker:
        nonlocal newest
        ranker = ReleaseRanker(workspace, release, logged_share=logged_share)
        ranker.load_retriever(like=newest() if newest else None)
        newest = ref(ranker)
        metrics.loaded(ranker)
        return ranker

    events = load_events(workspace, metrics.took_events)
    live = LiveReleases(workspace, load)
    live.start()
    service = RankingService(
        live,
        metrics,
        pressure or PressureOptions(),
        RequestLog(RequestLogOptions()),
        Tracing.asked_for(),
    )
    metrics.follows(live.status, lambda: service.waiting)
    watch = CatalogueWatch(live.rankers)
    watch.start()
    return create_app(
        service,
        events,
        Access(workspace),
        at_shutdown=[watch.stop],
        grpc=grpc,
        only_loopback_names=only_loopback_names,
        ray_names_requests=ray_names_requests,
    )


def load_events(workspace: Workspace, counted: Callable[[str, int], None]) -> APIRouter:
    """The route that takes live events; it refuses them where the online store cannot merge.

    `counted`: of `events_router`.
    """
    from feature_repo.live_events import LiveEvents
    from feature_repo.store import open_store
    from serving.events import events_router, refusing_router

    try:
        # A store of its own: rankings read in another thread.
        return events_router(LiveEvents(workspace, open_store(workspace)), counted)
    except ArtifactError:
        raise
    except InputError as error:
        logging.getLogger(__name__).warning("no live events are taken: %s", error)
        return refusing_router()


@contextmanager
def running(
    workspace: Workspace,
    *,
    host: str,
    port: int,
    replicas: int = 1,
    logged_share: float = 0.0,
    fast: bool = False,
) -> Iterator[str]:
    """Serves the live release until the block ends. Yields the URL once it answers.

    `logged_share`: share of users whose reads are kept for `crescendo audit`. `fast`: `FAST`.
    InputError where others would reach a server that asks for no token, and for a copy of an
    `s3://` workspace on a cluster: its other machines do not have the copy.
    """
    check_exposure(workspace, EVERY_INTERFACE if fast else host)
    if fast:
        os.environ.update(FAST)
    # On a busy machine a proxy is not up within 5 s: Serve kills it, and the start fails.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    import ray
    from ray import serve

    workspace = Workspace(workspace.root.absolute())
    live_release(workspace)  # without one nothing is started

    def build() -> FastAPI:
        json_logs()
        return load_app(
            workspace,
            logged_share=logged_share,
            only_loopback_names=not read_tokens(tokens_path(workspace)),
            ray_names_requests=True,
        )

    # Those of a cluster may have the port: its own proxies.
    if not (ray.is_initialized() or names_a_cluster()):
        check_free(host, port, "port")
    ours = connect_to_ray(num_cpus=max(LOGICAL_CPUS, replicas))
    try:
        machines = sum(node["Alive"] for node in ray.nodes())
        if not workspace.is_local and machines > 1:
            raise InputError(
                f"the copy of {workspace.location} lies on this machine alone, and RAY_ADDRESS is "
                f"a cluster of {machines}; serve a folder that all of them mount "
                "(deploy/kuberay), or leave RAY_ADDRESS out"
            )
        serve.start(http_options={"host": host, "port": port})
        deployment = serve.deployment(
            serve.ingress(build)(),
            name="ranking",
            num_replicas=replicas,
            max_ongoing_requests=MAX_ONGOING,
            ray_actor_options={"num_cpus": REPLICA_CPUS},
        )
        serve.run(deployment.bind(), name="crescendo", route_prefix="/")
        yield f"http://{host}:{port}"
    finally:
        serve.shutdown()
        if ours:
            ray.shutdown()


def stop_on_signal(stop: threading.Event) -> None:
    """SIGINT and SIGTERM set `stop` from now on."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())


def serve_until_signal(
    workspace: Workspace,
    *,
    host: str,
    port: int,
    replicas: int,
    logged_share: float = 0.0,
    fast: bool = False,
) -> None:
    """Serves the live release until SIGINT or SIGTERM, also one that comes during the start."""
    stop = threading.Event()
    stop_on_signal(stop)
    with running(
        workspace,
        host=host,
        port=port,
        replicas=replicas,
        logged_share=logged_share,
        fast=fast,
    ) as url:
        stop_on_signal(stop)  # Ray puts a handler of its own in place when it starts
        print(f"serving at {url}/; stop with Ctrl-C", file=sys.stderr, flush=True)
        # Ray's threads may take the signal: only a main thread that wakes up runs the handler.
        while not stop.wait(SIGNAL_CHECK_S):
            pass

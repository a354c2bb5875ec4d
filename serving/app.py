"""The HTTP application: a plain FastAPI app, run by Ray Serve or by uvicorn.

POST /v1/rank, /v1/recommend   rankings (serving/ranking_routes.py)
POST /v1/events                live events (serving/events.py)
GET  /healthz                  the process answers
GET  /readyz                   a release is loaded: its id, and what is on its way or wrong
GET  /metrics                  Prometheus (serving/metrics.py)
GET  /                         the web page (serving/page)
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI

from serving.access import Access
from serving.error_answers import ERROR_ANSWERS, add_error_answers
from serving.grpc_server import GrpcOptions, grpc_server
from serving.listening import LoopbackNames
from serving.metrics import metrics_router
from serving.page.router import page_router
from serving.ranking_routes import ranking_router
from serving.ranking_service import RankingService
from serving.request_limits import RequestLimits
from serving.shedding import Shedding, UnreadRefusals
from serving.straight_rank import StraightRank


def create_app(
    service: RankingService,
    events: APIRouter,
    access: Access,
    *,
    at_shutdown: Sequence[Callable[[], None]] = (),
    grpc: GrpcOptions | None = None,
    only_loopback_names: bool = False,
    ray_names_requests: bool = False,
) -> FastAPI:
    """The application around a service whose releases are loaded, and the route of events.

    `at_shutdown` is called before the service is closed. `grpc`: where to take calls beside HTTP.
    `only_loopback_names`: `serving.listening.LoopbackNames`. `ray_names_requests`: Ray Serve puts
    the request's id into the answer, after us.
    """

    @asynccontextmanager
    async def while_serving(_: FastAPI) -> AsyncIterator[None]:
        lag = asyncio.create_task(service.metrics.watch_loop())
        async with AsyncExitStack() as stack:
            if grpc is not None:
                await stack.enter_async_context(grpc_server(service, access, grpc))
            yield
        lag.cancel()
        for end in at_shutdown:
            end()
        service.close()

    app = FastAPI(
        title="Crescendo",
        docs_url=None,
        redoc_url=None,
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
        },  # serving/tracing.py has ours
        responses=ERROR_ANSWERS,
        lifespan=while_serving,
    )
    add_error_answers(app, service.metrics.failed, service.rejected)
    # Each comes before those that were added earlier.
    app.add_middleware(StraightRank, service=service)
    access.guard(app, service.rejected)
    if only_loopback_names:
        app.add_middleware(LoopbackNames, rejected=service.rejected)
    refusals = UnreadRefusals(service.metrics.rejected)
    app.state.pressure, app.state.refusals = service.pressure, refusals  # for uvicorn's protocol
    app.add_middleware(Shedding, pressure=service.pressure, refusals=refusals)
    # Last, so outermost: refusals carry the request's id too.
    app.add_middleware(RequestLimits, rejected=service.rejected, named_outside=ray_names_requests)
    for router in (
        ranking_router(service),
        events,
        metrics_router(service.metrics),
        page_router(service.live),
    ):
        app.include_router(router)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, Any]:
        status = service.live.status()
        return {"release_id": status["live"], **status}

    return app

"""One small workspace with several models for all tests that change releases."""

import shutil

import pytest

from tests.serving.release_world import release_world


@pytest.fixture(scope="session")
def shared_release_world(tmp_path_factory):
    return release_world(tmp_path_factory.mktemp("releases") / "workspace")


@pytest.fixture
def world(shared_release_world):
    """The workspace without any release."""
    shared_release_world.reset()
    return shared_release_world


@pytest.fixture(scope="module")
def retrievers(shared_release_world):
    """Ids of retriever models in that workspace: live, batch, foreign (`retriever_world`)."""
    from tests.serving.retriever_world import write_retrievers

    workspace = shared_release_world.workspace
    model_ids = write_retrievers(workspace)
    yield model_ids
    for model_id in model_ids:
        shutil.rmtree(workspace.models / model_id)


@pytest.fixture(scope="module")
def service_of():
    """Starts a service on the live release; all are closed at the end."""
    from serving.live_releases import LiveReleases
    from serving.metrics import ServingMetrics
    from serving.ranker import ReleaseRanker
    from serving.ranking_service import RankingService
    from serving.request_log import RequestLog, RequestLogOptions
    from tests.serving.retriever_world import PATIENT

    services = []

    def start(workspace, options=PATIENT):
        def load(release):
            ranker = ReleaseRanker(workspace, release)
            ranker.load_retriever()
            return ranker

        live = LiveReleases(workspace, load, poll_s=3600)
        live.start()
        log = RequestLog(RequestLogOptions(share=0))
        services.append(RankingService(live, ServingMetrics(), options, log))
        return services[-1]

    yield start
    for service in services:
        service.close()

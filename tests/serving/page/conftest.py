"""One workspace for all tests of the page, and one application for each of their files."""

import pytest

from tests.serving.page.page_world import load_patient_app, page_world


@pytest.fixture(scope="session")
def page_workspace(tmp_path_factory):
    return page_world(tmp_path_factory.mktemp("page") / "workspace", "mcca")


@pytest.fixture(scope="module")
def page_app(page_workspace):
    """Served once only: its end closes what it reads with."""
    return load_patient_app(page_workspace)


@pytest.fixture(scope="module", params=["sim", "transformer"])
def other_app(request, tmp_path_factory):
    """The same page over a ranker whose attention is no MCCA's; `app.state.model` is its name."""
    folder = tmp_path_factory.mktemp(request.param) / "workspace"
    app = load_patient_app(page_world(folder, request.param))
    app.state.model = request.param
    return app

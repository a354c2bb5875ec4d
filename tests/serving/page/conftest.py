"""One workspace for all tests of the page, and one application for each of their files."""

import pytest

from tests.serving.page.page_world import load_patient_app, page_world


@pytest.fixture(scope="session")
def page_workspace(tmp_path_factory):
    return page_world(tmp_path_factory.mktemp("page") / "workspace")


@pytest.fixture(scope="module")
def page_app(page_workspace):
    """Served once only: its end closes what it reads with."""
    return load_patient_app(page_workspace)

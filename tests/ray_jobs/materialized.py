"""A workspace to be materialized, for the tests of this folder: fixtures, and runs of it.

Fixtures: `workspace` (empty) and `twenty_days` (rows of both sources).
"""

import pytest

from feature_repo.online import packed_store
from feature_repo.store import open_store
from feature_repo.workspace import Workspace
from ray_jobs.materialize import materialize
from ray_jobs.materialize_options import MaterializeOptions
from ray_jobs.materialize_source import ViewSource
from tests.view_sources import (
    apply_views,
    listen,
    packed_settings,
    plain_row,
    random_rows,
    write_both,
)

DAYS = 24.0


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "workspace")


@pytest.fixture(scope="module")
def twenty_days():
    """Rows of 20 days, ending with one of user 1 in each source."""
    plain, listens = random_rows(0, 40, 900, 20 * DAYS)
    plain.append(plain_row(1, 20 * DAYS + 1, 77))
    listens.append(listen(10_000, 1, 20 * DAYS + 1))
    return plain, listens


def published(workspace, plain, listens):
    write_both(workspace, plain, listens)
    return apply_views(workspace, packed_settings())


def run(workspace, **options):
    return materialize(workspace, MaterializeOptions(**options))["views"]


def view_and_source(workspace, name):
    store = open_store(workspace)
    return store, packed_store(store), ViewSource(workspace, store.get_feature_view(name))

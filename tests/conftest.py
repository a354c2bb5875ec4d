"""Fixtures shared by all tests: the real data sets, and one Ray for the tests that need it.

Temporary folders lie in shared memory where there is room: an fsync, of which there are tens of
thousands, takes 8 ms on a disk. PYTEST_DEBUG_TEMPROOT puts them elsewhere.
"""

import os
import shutil
from pathlib import Path

import prometheus_client  # noqa: F401  # before Feast, as in serving/__init__.py
import pytest

import feature_repo  # noqa: F401  # before a test imports Feast

pytest.register_assert_rewrite("tests.ray_jobs", "tests.serving")  # before helpers are imported
pytest_plugins = ["tests.servers", "tests.servers_sql_s3"]

# Two sessions that start Ray at once on a busy machine need longer than its 30 s.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")

SHARED_MEMORY, LEAST_FREE_BYTES = Path("/dev/shm"), 4 * 2**30
if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free >= LEAST_FREE_BYTES:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(SHARED_MEMORY))

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items):
    """Files with slow tests first: at the end one process would wait for the other's."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared_data():
    """`shared_data(name)`: the folder of a real data set, or a skip that says it is missing."""

    def folder(name: str) -> Path:
        path = SHARED_DATA / name
        if not path.is_dir():
            pytest.skip(f"real data set {name} is not at {path}")
        return path

    return folder


@pytest.fixture(scope="session")
def ray_local():
    """One local Ray for the whole test session, shut down at its end."""
    from ray_jobs.ray_session import ray_session

    with ray_session():
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A published workspace, and what training MCCA on it answered."""
    from tests.trained import published_workspace, train_small

    workspace = published_workspace(tmp_path_factory.mktemp("trained"))
    return workspace, train_small(workspace)

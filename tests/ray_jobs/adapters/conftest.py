"""An ingest that checks that no row got lost, for the tests of every adapter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from feature_repo.workspace import Workspace
from ray_jobs.ingest import IngestOptions, ingest


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def ingested(workspace: Workspace) -> Callable[..., dict[str, Any]]:
    """`ingested(source, path, **options)`: the result, once rows in = rows out + rejected."""

    def run(source: str, path: Path, **options: Any) -> dict[str, Any]:
        result = ingest(workspace, IngestOptions(source=source, path=path, **options))
        for name, folder in (("tracks", workspace.tracks), ("events", workspace.events)):
            rejected = pq.read_table(workspace.rejected / f"{name}.parquet").num_rows
            assert result["rows_in"][name] == pq.read_table(folder).num_rows + rejected
            assert sum(result["rejected_by_reason"][name].values()) == rejected
        return result

    return run


@pytest.fixture
def by_title(workspace: Workspace) -> Callable[[], dict[str, dict[str, Any]]]:
    """`by_title()`: the rows of the tracks table by title."""
    return lambda: {row["title"]: row for row in pq.read_table(workspace.tracks).to_pylist()}

"""A range in chunks: of any size, from where a run was cut off, of one source."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.errors import ArtifactError
from feature_repo.online import packed_store
from feature_repo.workspace import Workspace
from ray_jobs.materialize_range import store_identity
from ray_jobs.materialize_source import ViewSource
from ray_jobs.watermarks import folder, read_progress, read_watermark
from tests.ray_jobs.materialized import DAYS, published, run
from tests.view_sources import (
    PLAIN,
    at,
    expected_state,
    online_state,
    plain_row,
    until,
    write_source,
)

pytest_plugins = ["tests.ray_jobs.materialized"]


@pytest.mark.parametrize("chunk_rows", [1, 100])
def test_chunks_of_any_size_give_the_same_state(workspace, twenty_days, chunk_rows):
    store = published(workspace, *(until(rows, 3 * DAYS) for rows in twenty_days))
    run(workspace, chunk_rows=chunk_rows)
    moment = max(row["event_timestamp"] for row in until(twenty_days[1], 3 * DAYS))
    expected = expected_state(*(until(rows, 3 * DAYS) for rows in twenty_days), moment)
    assert online_state(store) == expected
    assert read_progress(workspace, PLAIN) is None


@settings(max_examples=40, deadline=None)
@given(
    hours=st.lists(st.integers(0, 30), min_size=1, max_size=60),
    chunk_rows=st.integers(1, 10),
    span=st.tuples(st.integers(-2, 10), st.integers(11, 32)),
)
def test_chunks_split_the_range_within_their_size(tmp_path_factory, hours, chunk_rows, span):
    workspace = Workspace(tmp_path_factory.mktemp("chunks"))
    write_source(workspace, PLAIN, [plain_row(n, hour, 1) for n, hour in enumerate(hours)])
    start, end = at(span[0]), at(span[1])
    chunks = ViewSource(workspace, _View()).chunks(start, end, chunk_rows)
    inside = [at(hour) for hour in hours if start < at(hour) <= end]
    if len(hours) <= chunk_rows:
        assert chunks == [end]
        return
    if not inside:
        assert chunks == []
        return
    assert chunks[-1] == end
    assert chunks == sorted(set(chunks))
    assert chunks[0] > start
    for first, last in zip([start, *chunks], chunks, strict=False):
        held = [moment for moment in inside if first < moment <= last]
        assert len(held) <= chunk_rows or len(set(held)) == 1


class _View:
    """What ViewSource needs of a view to count rows."""

    name = PLAIN

    class batch_source:
        timestamp_field = "event_timestamp"


def test_progress_of_another_plan_is_not_inherited(workspace, twenty_days):
    """A progress file of another source or start is ignored; one of this plan is gone on from."""
    from ray_jobs.watermarks import EPOCH, Progress, write_progress

    store = published(workspace, *twenty_days)
    source = ViewSource(workspace, store.get_feature_view(PLAIN))
    folder(workspace).mkdir()
    done = Progress(
        source=source.files,
        store=store_identity(store.config, source.view),
        start=EPOCH.isoformat(),
        done=at(30 * DAYS).isoformat(),
    )
    write_progress(workspace, PLAIN, replace(done, source={"part-0.parquet": "another"}))
    assert run(workspace)[PLAIN]["rows"] == 40
    (folder(workspace) / f"{PLAIN}.json").unlink()
    # This one claims what is not true here: nothing is written, and the check finds it.
    packed_store(store).delete_rows(store.config, source.view, np.arange(1, 41))
    write_progress(workspace, PLAIN, done)
    with pytest.raises(ArtifactError, match="40 of the source's 40 entities are not online"):
        run(workspace)
    assert run(workspace)[PLAIN]["rows"] == 40
    path = folder(workspace) / f"{PLAIN}.json"
    assert json.loads(path.read_text())["online"] == 40


def test_a_source_replaced_in_the_middle_is_noticed(workspace, twenty_days, monkeypatch):
    published(workspace, *twenty_days)
    write_all = __import__("ray_jobs.materialize_chunks", fromlist=["write_all"]).write_all

    def replaced_meanwhile(tables, write, name):
        rows = write_all(tables, write, name)
        write_source(workspace, name, twenty_days[0][:100], parts=2)
        return rows

    monkeypatch.setattr("ray_jobs.materialize_chunks.write_all", replaced_meanwhile)
    with pytest.raises(ArtifactError, match=r"was replaced while it was materialized|not online"):
        run(workspace, views=(PLAIN,))
    assert read_watermark(workspace, PLAIN) is None

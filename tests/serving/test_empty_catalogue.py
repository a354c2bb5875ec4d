"""A catalogue that loses all its tracks under a running server: real process, no failed request."""

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from feature_repo import schema
from feature_repo.workspace import Workspace
from serving.load_client import Target
from serving.load_requests import rank_bodies
from serving.load_test import LoadOptions, run_load
from tests.serving.page.page_world import page_world
from tests.serving.serving_process import served
from tests.trained import TRACKS


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    return page_world(tmp_path_factory.mktemp("empty") / "workspace", "mcca")


def recommended(url, **asked):
    answer = httpx.post(f"{url}/v1/recommend", json={"count": 5, **asked}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


@pytest.mark.slow
def test_without_a_track_there_is_nothing_to_recommend_and_nothing_fails(workspace):
    table = workspace.tracks / "part-0.parquet"
    whole = pq.read_table(table)
    bodies = rank_bodies(
        np.arange(1, 40), np.arange(1, TRACKS + 1), 20, 50, np.random.default_rng(0)
    )
    with served(workspace) as url:
        assert len(recommended(url, user_id=1)) == 5
        pq.write_table(schema.TRACKS.empty_table(), table)
        while recommended(url, user_id=1):  # the catalogue is looked at every ten seconds
            pass
        for asked in ({"user_id": 10**9}, {"history": []}, {"history": [1, 2]}):
            assert recommended(url, **asked) == []
        options = LoadOptions(target=Target(url=url, timeout_s=60), rate=20, seconds=3, warm_up_s=0)
        report = run_load(options, bodies)
        assert report.errors == 0, report.answers
        for path in ("/", "/readyz", "/metrics", "/v1/browse/release", "/v1/browse/codes/joint"):
            assert httpx.get(f"{url}{path}", timeout=60).status_code == 200, path
        assert httpx.get(f"{url}/v1/browse/search?text=song", timeout=60).json() == []
        pq.write_table(whole, table)
        while len(recommended(url, user_id=1)) < 5:
            pass


@pytest.mark.slow
def test_a_server_that_starts_on_an_empty_catalogue_serves(workspace):
    table = workspace.tracks / "part-0.parquet"
    whole = pq.read_table(table)
    pq.write_table(schema.TRACKS.empty_table(), table)
    with served(workspace) as url:
        assert recommended(url, user_id=1) == []
        ranked = httpx.post(f"{url}/v1/rank", json={"user_id": 1, "candidates": [3]}, timeout=60)
        assert [track["track_id"] for track in ranked.json()["results"]] == [3]
    pq.write_table(whole, table)

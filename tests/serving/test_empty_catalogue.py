"""A catalogue that loses all its tracks under a running server: real process, no failed request."""

import httpx
import pyarrow.parquet as pq
import pytest

from feature_repo import schema
from feature_repo.workspace import Workspace
from tests.serving.page.page_world import page_world
from tests.serving.serving_process import served


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
    with served(workspace) as url:
        assert len(recommended(url, user_id=1)) == 5
        pq.write_table(schema.TRACKS.empty_table(), table)
        while recommended(url, user_id=1):  # the catalogue is looked at every ten seconds
            pass
        for asked in ({"user_id": 10**9}, {"history": []}, {"history": [1, 2]}):
            assert recommended(url, **asked) == []
        for user in range(1, 40):
            asked = {"user_id": user, "candidates": [user, 1, 2]}
            ranked = httpx.post(f"{url}/v1/rank", json=asked, timeout=60)
            assert ranked.status_code == 200, ranked.text
            assert len(ranked.json()["results"]) == len({user, 1, 2})
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

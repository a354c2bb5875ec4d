"""Tracks that come after the release: a real server proposes and ranks them soon after `assign`."""

import threading

import httpx
import pytest
import yaml

from feature_repo.store_settings import PACKED_SQLITE, STORE_SETTINGS
from feature_repo.workspace import Workspace
from ray_jobs.assign import assign
from ray_jobs.publish import publish
from ray_jobs.quantize import quantize
from ray_jobs.quantize_options import QuantizeOptions
from ray_jobs.sequences import SequenceOptions, sequences
from ray_jobs.training_set import TrainingSetOptions, training_set
from serving.releases import make_release
from tests.embedded import clustered, write_catalogue
from tests.event_logs import write_events
from tests.serving.serving_process import served
from tests.trained import TRACKS, learnable_log
from tests.untrained import write_model

DIMS = {"text": 12, "audio": 6}
NEW = range(TRACKS + 1, TRACKS + 21)


@pytest.mark.slow
def test_assigned_tracks_are_proposed_and_ranked_by_a_running_server(tmp_path):
    workspace = Workspace(tmp_path)
    settings = STORE_SETTINGS | {"online_store": {"type": PACKED_SQLITE, "path": "online.db"}}
    (tmp_path / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    write_events(workspace, learnable_log(events=1000))
    write_catalogue(workspace, clustered(TRACKS, DIMS))
    generation_id = quantize(workspace, QuantizeOptions(levels=2, codes=6))["generation_id"]
    sequences(workspace, SequenceOptions(length=6))
    publish(workspace)
    write_model(workspace, training_set(workspace, TrainingSetOptions()), "mcca")
    make_release(workspace)
    with served(workspace) as url:

        def asked(path, **body):
            answer = httpx.post(f"{url}{path}", json=body, timeout=60)
            assert answer.status_code == 200, answer.text
            return answer.json()

        def proposed():
            results = asked("/v1/recommend", history=[7], count=100)["results"]
            return {one["track_id"]: one["sources"] for one in results}

        def ranked():
            return asked("/v1/rank", user_id=1, candidates=[1, *NEW])

        assert not set(proposed()) & set(NEW)
        assert ranked()["missing"]["tracks"] == list(NEW)
        write_catalogue(workspace, clustered(len(NEW) + TRACKS, DIMS))
        assert assign(workspace, generation_id)["assigned"] == len(NEW)
        while not set(proposed()) & set(NEW) or ranked()["missing"]["tracks"]:
            threading.Event().wait(0.1)
        sources = set().union(*(kinds for track, kinds in proposed().items() if track in NEW))
        assert {"vectors", "prefix"} <= sources
        scores = {one["track_id"]: one["score"] for one in ranked()["results"]}
        assert all(scores[track] is not None for track in NEW)

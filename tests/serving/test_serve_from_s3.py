"""`crescendo serve` on a workspace in an object store, as processes: what another machine releases
and takes back is served, under Ray Serve and without Ray."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

from feature_repo.published_stores import set_stores
from feature_repo.store_settings import ASOF, PACKED_SQLITE, STORE_SETTINGS
from feature_repo.working_copy import working_copy
from ray_jobs.publish import publish
from ray_jobs.sequences import SequenceOptions, sequences
from ray_jobs.training_set import TrainingSetOptions, training_set
from serving.releases import make_release, rollback
from tests.event_logs import write_events
from tests.generations import write_generation
from tests.serving.serving_process import free_port
from tests.trained import GENERATION, TRACKS, learnable_log
from tests.untrained import write_model

STORES = {
    **STORE_SETTINGS,
    "online_store": {"type": PACKED_SQLITE, "path": "online.db"},
    "offline_store": {"type": ASOF},
}
GIVE_UP_S = 120.0
"""For one release to be live. A look is due every 0.2 s; a machine may be busy."""


@pytest.fixture
def elsewhere(object_store, tmp_path):
    """`with elsewhere() as workspace`: the workspace as another machine works on it."""
    settings = tmp_path / "stores.yaml"
    settings.write_text(yaml.safe_dump(STORES))

    def session():
        return working_copy(object_store.uri, cache=tmp_path / "elsewhere")

    with session() as workspace:
        set_stores(workspace, str(settings))
        write_events(workspace, learnable_log(events=800))
        write_generation(workspace, GENERATION, TRACKS)
        sequences(workspace, SequenceOptions(length=10))
        publish(workspace)
        data = training_set(workspace, TrainingSetOptions())
        write_model(workspace, data, "mcca")
        write_model(workspace, data, "din")
    return session


def release(elsewhere, model: str) -> str:
    with elsewhere() as workspace:
        names = [folder.name for folder in workspace.models.iterdir()]
        (own,) = (
            name
            for name in names
            if json.loads((workspace.models / name / "manifest.json").read_text())["options"][
                "model"
            ]
            == model
        )
        return make_release(workspace, own)["release_id"]


def wait_until_live(url: str, release_id: str) -> None:
    """Every request until then is answered, by one of the two releases."""
    give_up = time.monotonic() + GIVE_UP_S
    while True:
        answer = httpx.post(
            f"{url}/v1/rank",
            json={"user_id": 1, "candidates": [1, 2, 3]},
            headers={"X-Deadline-Ms": "60000"},
            timeout=60,
        )
        if answer.status_code != 503:  # the machine is busy
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["results"]) == 3
            if answer.json()["release_id"] == release_id:
                return
        assert time.monotonic() < give_up, f"{release_id} did not come: {answer.text}"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("under", [[], ["--uvicorn"]], ids=["ray", "uvicorn"])
def test_releases_and_rollbacks_elsewhere_are_served(elsewhere, object_store, tmp_path, under):
    first = release(elsewhere, "mcca")
    port = free_port()
    crescendo = Path(sys.executable).parent / "crescendo"
    command = [crescendo, "--workspace", object_store.uri, "serve", "--port", str(port)]
    with (tmp_path / "said").open("w+") as said:
        server = subprocess.Popen(
            [*map(str, command), "--remote-poll-s", "0.2", *under],
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")},
        )
        try:
            while "stop with Ctrl-C" not in (text := (tmp_path / "said").read_text()):
                assert server.poll() is None, f"it ended before it served: {text}"
                time.sleep(0.1)
            url = f"http://127.0.0.1:{port}"
            wait_until_live(url, first)
            second = release(elsewhere, "din")
            wait_until_live(url, second)
            with elsewhere() as workspace:
                rollback(workspace)
            wait_until_live(url, first)
            # The copy's journal would be lost, so events are refused, not taken.
            event = {"event_id": 1, "user_id": 1, "track_id": 1, "action": "play"}
            event["event_timestamp"] = "2026-01-01T00:00:00Z"
            answer = httpx.post(f"{url}/v1/events", json={"events": [event]}, timeout=60)
            assert answer.status_code == 503, answer.text
            server.send_signal(signal.SIGTERM)
            printed, _ = server.communicate(timeout=120)
        finally:
            server.kill()
            server.wait()
        assert server.returncode == 0, (tmp_path / "said").read_text()
    assert json.loads(printed.splitlines()[-1]) == {"release_id": first}

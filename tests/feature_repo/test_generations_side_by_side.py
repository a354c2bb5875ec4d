"""A new generation is published, and others dropped, while another process reads the old one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from feature_repo.store_settings import STORE_SETTINGS
from feature_repo.workspace import Workspace
from ray_jobs.publish import publish
from ray_jobs.retire import RetireOptions, retire
from ray_jobs.sequences import SequenceOptions, sequences
from tests.event_logs import event, write_events
from tests.generations import write_generation

OLD, NEW, NEXT = "gen-aaaaaaaaaaaa", "gen-bbbbbbbbbbbb", "gen-cccccccccccc"
TRACKS = 300
ATOMIC = "feature_repo.stores.atomic_registry.AtomicFileRegistryStore"
PACKED = "feature_repo.stores.packed_"
SQLITE = {"type": f"{PACKED}sqlite.PackedSqliteOnlineStore", "path": "online.db"}


def published(root: Path, online: dict) -> Workspace:
    workspace = Workspace(root)
    root.mkdir()
    settings = {
        **STORE_SETTINGS,
        "registry": {**STORE_SETTINGS["registry"], "registry_store_type": ATOMIC},
        "online_store": online,
        "offline_store": {"type": "feature_repo.stores.asof.AsofOfflineStore"},
    }
    (root / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    write_events(workspace, [event(n, n % 7 + 1, n % TRACKS + 1, n) for n in range(400)])
    write_generation(workspace, OLD, TRACKS, seed=1)
    sequences(workspace, SequenceOptions(length=5))
    publish(workspace, OLD)
    return workspace


def publish_while_reading(workspace: Workspace, tmp_path: Path) -> dict:
    """Publishes NEW, then NEXT, and drops NEW, beside a reader; returns what that one says."""
    stop = tmp_path / "stop"
    command = [sys.executable, "-m", "tests.feature_repo.generation_reader"]
    with subprocess.Popen(
        [*command, str(workspace.root), OLD, str(TRACKS), str(stop)],
        stdout=subprocess.PIPE,
        text=True,
    ) as reader:
        try:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "reading\n"
            for seed, generation in enumerate((NEW, NEXT), start=2):
                write_generation(workspace, generation, TRACKS, seed)
                publish(workspace, generation)
            # A read of NEW that is under way would find it gone: the reader has to be past it.
            assert f"seen {NEXT}\n" in iter(reader.stdout.readline, "")
            assert retire(workspace, RetireOptions(generation=NEW))["generations"] == [NEW]
            stop.touch()
            return json.loads(reader.stdout.read().splitlines()[-1])
        except BaseException:
            reader.kill()
            raise


def check(said: dict) -> None:
    assert said["reads"] > 2
    assert (said["wrong"], said["mixed"]) == (0, 0)
    assert said["missed"] <= 3  # once a change of the registry, at most
    assert said["seen"][0] == OLD
    assert said["seen"][-1] == NEXT
    assert len(said["seen"]) == len(set(said["seen"]))  # never back to an older one


@pytest.mark.slow
def test_no_read_mixes_generations_embedded(tmp_path):
    workspace = published(tmp_path / "workspace", SQLITE)
    check(publish_while_reading(workspace, tmp_path))


@pytest.mark.slow
@pytest.mark.redis
def test_no_read_mixes_generations_on_redis(tmp_path, redis_server):
    online = {
        "type": f"{PACKED}redis.PackedRedisOnlineStore",
        "connection_string": redis_server,
    }
    workspace = published(tmp_path / "workspace", online)
    check(publish_while_reading(workspace, tmp_path))

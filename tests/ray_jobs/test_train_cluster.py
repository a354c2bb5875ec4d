"""Training on a Ray cluster of two nodes: a killed worker or driver changes nothing that is learnt.

The nodes are processes of this machine, the workspace a folder that both see. Each node has room
for one worker.
"""

import json
import os
import signal
from types import SimpleNamespace

import pytest

from feature_repo.artifacts import read_manifest
from feature_repo.ray_start import patience
from ray_jobs.run_folder import PREFIX
from tests import train_driver
from tests.trained import published_workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_worker_niceness", "0")
    node = {"num_cpus": 1, "object_store_memory": 128 * 2**20, "node_ip_address": "127.0.0.1"}
    with patience():
        two = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        two.add_node(**node)
    yield two
    two.shutdown()


@pytest.fixture(scope="module")
def world(cluster, tmp_path_factory):
    """A published workspace on the cluster, and what training it with two workers gives."""
    workspace = published_workspace(tmp_path_factory.mktemp("shared") / "workspace")
    driver = train_driver.start(workspace, cluster.address, workers=2)
    nodes = set()

    def look(folder):
        nodes.update(train_driver.worker(folder, rank)["node"] for rank in (0, 1))

    train_driver.at_first_checkpoint(workspace, driver, look)
    result = train_driver.answer(driver)
    return SimpleNamespace(
        workspace=workspace,
        address=cluster.address,
        nodes=nodes,
        result=result,
        curve=curve_of(workspace, result),
    )


def curve_of(workspace, result):
    lines = (workspace.models / result["model_id"] / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def starts_of(world, result):
    folder = world.workspace.models / result["model_id"]
    return read_manifest(folder, kind="model", made_by="train").info["starts"]


def test_workers_are_spread_over_the_nodes(world):
    assert len(world.nodes) == 2
    assert world.result["auc"] > 0.6
    assert starts_of(world, world.result) == [{"epoch": 0, "batch": 0, "workers": 2}]


def test_a_killed_worker_changes_no_bit(world):
    driver = train_driver.start(world.workspace, world.address, workers=2)
    train_driver.at_first_checkpoint(world.workspace, driver, train_driver.kill_rank(1))
    result = train_driver.answer(driver)
    first, second = starts_of(world, result)
    assert first == {"epoch": 0, "batch": 0, "workers": 2}
    assert second["batch"] > 0  # in the middle of an epoch
    assert curve_of(world.workspace, result) == world.curve
    assert result["auc"] == world.result["auc"]
    assert result["logloss"] == world.result["logloss"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_driver_is_followed_by_one_with_another_number_of_workers(world, workers):
    driver = train_driver.start(world.workspace, world.address, workers=2)
    train_driver.at_first_checkpoint(
        world.workspace, driver, lambda _: os.kill(driver.pid, signal.SIGKILL)
    )
    assert driver.wait() == -signal.SIGKILL
    assert len(list(world.workspace.models.glob(f"{PREFIX}*"))) == 1
    result = train_driver.answer(
        train_driver.start(world.workspace, world.address, workers=workers)
    )
    first, second = starts_of(world, result)
    assert (first["workers"], second["workers"]) == (2, 1)
    assert second["batch"] > 0
    assert result["model_id"] == world.result["model_id"]
    curve = curve_of(world.workspace, result)
    assert [epoch["rows"] for epoch in curve] == [epoch["rows"] for epoch in world.curve]
    # One process adds up in another order than two: the difference grows with every step.
    for name, margin in (("train_loss", 2e-3), ("validation_logloss", 5e-3)):
        assert curve[0][name] == pytest.approx(world.curve[0][name], abs=margin)
    assert result["auc"] == pytest.approx(world.result["auc"], abs=2e-2)
    assert list(world.workspace.models.glob(f"{PREFIX}*")) == []

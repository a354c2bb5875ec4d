"""A Ray that cannot be joined or started: what a command says, each in a process of its own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from feature_repo import ray_start
from feature_repo.errors import RayUnavailableError
from feature_repo.ray_start import connect_to_ray

COMMAND = """
import sys
from feature_repo import ray_start
from ray_jobs import cli
from ray_jobs.ray_session import ray_session
ray_start.SHARED_MEMORY = sys.argv.pop(1)
@cli.app.command()
def needs_ray() -> None:
    with ray_session():
        print("connected")
sys.argv = ["crescendo", "--workspace", sys.argv[1], "needs-ray"]
cli.main()
"""


def needs_ray(folder: Path, shared_memory: str = "/dev/shm", **environment: str) -> tuple[int, str]:
    """Exit code and standard error of a command that connects to Ray."""
    ended = subprocess.run(
        [sys.executable, "-c", COMMAND, shared_memory, str(folder / "workspace")],
        env=os.environ | environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert "connected" not in ended.stdout
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("address", ["garbage", "host:port", "ray://head"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, address: str) -> None:
    code, said = needs_ray(tmp_path, RAY_ADDRESS=address)
    assert code == 2
    assert said.splitlines()[-1].startswith(f"error: RAY_ADDRESS={address}: expected HOST:PORT")
    assert "Traceback" not in said


def test_an_address_where_nobody_listens_is_told_with_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can answer there
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, said = needs_ray(tmp_path, RAY_ADDRESS=address)
    assert code == 1
    last = said.splitlines()[-1]
    assert last.startswith(f"error: no Ray answers at RAY_ADDRESS={address} (")
    assert "Connection refused" in last
    assert "unset RAY_ADDRESS" in last
    assert "Traceback" not in said


@pytest.mark.slow
def test_another_server_at_the_address_is_no_ray(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        # Ray's own patience with a server that says nothing, cut short.
        code, said = needs_ray(
            tmp_path,
            RAY_ADDRESS=f"127.0.0.1:{other.getsockname()[1]}",
            RAY_gcs_server_request_timeout_seconds="1",
            RAY_gcs_rpc_server_connect_timeout_s="1",
        )
    assert code == 1
    assert said.splitlines()[-1].startswith("error: no Ray answers at RAY_ADDRESS=127.0.0.1:")
    assert "Traceback" not in said


def test_without_shared_memory_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    code, said = needs_ray(tmp_path, shared_memory=str(tmp_path / "shm"), RAY_ADDRESS="")
    assert code == 1
    assert f"error: this machine has no {tmp_path}/shm" in said.splitlines()[-1]
    assert "--shm-size" in said
    assert "Traceback" not in said


def test_a_ray_that_does_not_start_says_why_and_what_it_needs(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)  # too long for the path of a socket
    folder.mkdir()
    code, said = needs_ray(tmp_path, RAY_ADDRESS="", RAY_TMPDIR=str(folder))
    assert code == 1
    last = said.splitlines()[-1]
    assert last.startswith("error: Ray did not start on this machine (")
    assert "cannot exceed 107 bytes" in last
    assert f"write under {folder}/ray" in last
    assert "Traceback" not in said


def test_a_node_that_is_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own loop ends after 30 s, however often it has asked."""
    from ray._private import services

    asked: list[str] = []

    def unknown_twice(address: str, node_id: str) -> str:
        asked.append(node_id)
        if len(asked) < 3:
            raise RuntimeError(f"No node {node_id}")
        return "the node"

    def starting(**options: object) -> None:
        assert services.get_node("127.0.0.1:1", "n") == "the node"

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "get_node", unknown_twice)
    monkeypatch.setattr("ray.init", starting)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    assert connect_to_ray(num_cpus=1)
    assert asked == ["n"] * 3
    assert services.get_node is unknown_twice

    asked.clear()
    monkeypatch.setattr(ray_start, "UP_WITHIN_S", 0.0)
    with pytest.raises(RayUnavailableError, match="No node n"):
        connect_to_ray(num_cpus=1)
    assert services.get_node is unknown_twice
